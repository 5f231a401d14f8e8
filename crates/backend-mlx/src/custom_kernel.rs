//! GPU kernels that MLX compiles from source when they first run. One source, in Metal, serves Metal and CUDA.

use std::ffi::CString;
use std::ptr::null_mut;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_vector_array, mlx_vector_string};

use crate::device::GpuApi;

/// Definitions of the Metal names in kernel sources for CUDA, outside of the function.
const CUDA_HEADER: &str = "
namespace metal {
__device__ inline float max(float a, float b) { return fmaxf(a, b); }
__device__ inline float fabs(float a) { return fabsf(a); }
namespace precise {
__device__ inline float exp(float x) { return expf(x); }
__device__ inline float log(float x) { return logf(x); }
__device__ inline float rsqrt(float x) { return rsqrtf(x); }
}
}
__device__ inline float simd_sum(float value) {
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
";

/// Thread positions in CUDA, inside of the function.
const CUDA_POSITIONS: &str = "
const uint3 thread_position_in_threadgroup = make_uint3(threadIdx.x, threadIdx.y, threadIdx.z);
const uint3 thread_position_in_grid = make_uint3(
    blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z);
";

/// A GPU kernel.
pub(crate) struct CustomKernel {
    raw: RawKernel,
    outputs: usize,
}

enum RawKernel {
    Metal(mlx_sys::mlx_fast_metal_kernel),
    Cuda(mlx_sys::mlx_fast_cuda_kernel),
}

/// The launch configuration of a kernel: outputs, constants and threads.
pub(crate) struct Launch {
    raw: RawLaunch,
}

enum RawLaunch {
    Metal(mlx_sys::mlx_fast_metal_kernel_config),
    Cuda(mlx_sys::mlx_fast_cuda_kernel_config),
}

/// Description of a [`Launch`].
pub(crate) struct LaunchSpec<'a> {
    /// Shape and type of each output.
    pub outputs: &'a [(&'a [i32], Dtype)],
    /// Type names that the source uses.
    pub types: &'a [(&'a str, Dtype)],
    /// Compile-time integer constants.
    pub constants: &'a [(&'a str, i32)],
    /// Number of threads per axis.
    pub grid: [i32; 3],
    /// Number of threads of a thread group (a block in CUDA) per axis.
    pub group: [i32; 3],
}

impl CustomKernel {
    /// A kernel with the body `source`, in which the inputs and outputs are pointers of the given names. Inputs are passed
    /// row-contiguous. `source` may use thread positions, `simd_sum`, and of the namespace `metal` what the header for CUDA
    /// defines.
    ///
    /// # Errors
    /// MLX rejects the names. Errors in the source appear when a result is evaluated.
    pub fn new(api: GpuApi, name: &str, inputs: &[&str], outputs: &[&str], source: &str) -> Result<Self> {
        let (header, source) = match api {
            GpuApi::Metal => ("", source.to_owned()),
            GpuApi::Cuda => (CUDA_HEADER, format!("{CUDA_POSITIONS}{source}")),
        };
        let (name, source, header) = (c_string(name)?, c_string(&source)?, c_string(header)?);
        let (inputs, output_names) = (Strings::new(inputs)?, Strings::new(outputs)?);
        let (name, source, header) = (name.as_ptr(), source.as_ptr(), header.as_ptr());
        // SAFETY: all strings and vectors are alive during the call, which copies them.
        let raw = unsafe {
            match api {
                GpuApi::Metal => RawKernel::Metal(mlx_sys::mlx_fast_metal_kernel_new(
                    name,
                    inputs.0,
                    output_names.0,
                    source,
                    header,
                    true,
                    false,
                )),
                GpuApi::Cuda => RawKernel::Cuda(mlx_sys::mlx_fast_cuda_kernel_new(
                    name,
                    inputs.0,
                    output_names.0,
                    source,
                    header,
                    true,
                    0,
                )),
            }
        };
        let kernel = Self { raw, outputs: outputs.len() };
        let created = match kernel.raw {
            RawKernel::Metal(raw) => !raw.ctx.is_null(),
            RawKernel::Cuda(raw) => !raw.ctx.is_null(),
        };
        if created { Ok(kernel) } else { Err(Exception::custom("MLX cannot create a custom kernel")) }
    }

    /// A launch configuration for this kernel, for any number of calls.
    pub fn launch(&self, spec: &LaunchSpec<'_>) -> Result<Launch> {
        let ([x, y, z], [gx, gy, gz]) = (spec.grid, spec.group);
        let mut status = 0;
        let mut check = |code: i32| status |= code;
        // SAFETY: the configuration is used only here until it is complete; shapes and names are copied by the calls.
        let raw = unsafe {
            match self.raw {
                RawKernel::Metal(_) => {
                    let config = mlx_sys::mlx_fast_metal_kernel_config_new();
                    for (shape, dtype) in spec.outputs {
                        let (data, length, dtype) = (shape.as_ptr(), shape.len(), (*dtype).into());
                        check(mlx_sys::mlx_fast_metal_kernel_config_add_output_arg(
                            config, data, length, dtype,
                        ));
                    }
                    for (name, dtype) in spec.types {
                        let name = c_string(name)?;
                        let (name, dtype) = (name.as_ptr(), (*dtype).into());
                        check(mlx_sys::mlx_fast_metal_kernel_config_add_template_arg_dtype(
                            config, name, dtype,
                        ));
                    }
                    for (name, value) in spec.constants {
                        let name = c_string(name)?;
                        let name = name.as_ptr();
                        check(mlx_sys::mlx_fast_metal_kernel_config_add_template_arg_int(
                            config, name, *value,
                        ));
                    }
                    check(mlx_sys::mlx_fast_metal_kernel_config_set_grid(config, x, y, z));
                    check(mlx_sys::mlx_fast_metal_kernel_config_set_thread_group(config, gx, gy, gz));
                    RawLaunch::Metal(config)
                }
                RawKernel::Cuda(_) => {
                    let config = mlx_sys::mlx_fast_cuda_kernel_config_new();
                    for (shape, dtype) in spec.outputs {
                        let (data, length, dtype) = (shape.as_ptr(), shape.len(), (*dtype).into());
                        check(mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                            config, data, length, dtype,
                        ));
                    }
                    for (name, dtype) in spec.types {
                        let name = c_string(name)?;
                        let (name, dtype) = (name.as_ptr(), (*dtype).into());
                        check(mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(
                            config, name, dtype,
                        ));
                    }
                    for (name, value) in spec.constants {
                        let name = c_string(name)?;
                        let name = name.as_ptr();
                        check(mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(
                            config, name, *value,
                        ));
                    }
                    check(mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config, x, y, z));
                    check(mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config, gx, gy, gz));
                    RawLaunch::Cuda(config)
                }
            }
        };
        let launch = Launch { raw };
        if status == 0 { Ok(launch) } else { Err(Exception::custom("MLX cannot configure a custom kernel")) }
    }

    /// Adds the kernel to the graph; returns its unevaluated outputs.
    ///
    /// # Safety
    /// For these inputs and this launch, the kernel accesses only memory of its inputs and outputs, writes every element of
    /// the outputs, and has no data races.
    pub unsafe fn apply(&self, launch: &Launch, inputs: &[&Array]) -> Result<Vec<Array>> {
        let inputs: Vec<mlx_array> = inputs.iter().map(|input| input.as_ptr()).collect();
        let stream = Stream::thread_local_or_gpu();
        let mut outputs = Arrays(mlx_vector_array { ctx: null_mut() });
        // SAFETY: kernel, launch, arrays and stream are alive during the call, which copies the references that it needs;
        // the caller guarantees the kernel's memory accesses.
        let status = unsafe {
            let inputs = Arrays(mlx_sys::mlx_vector_array_new_data(inputs.as_ptr(), inputs.len()));
            outputs.0 = mlx_sys::mlx_vector_array_new();
            match (&self.raw, &launch.raw) {
                (RawKernel::Metal(kernel), RawLaunch::Metal(config)) => mlx_sys::mlx_fast_metal_kernel_apply(
                    &raw mut outputs.0,
                    *kernel,
                    inputs.0,
                    *config,
                    stream.as_ptr(),
                ),
                (RawKernel::Cuda(kernel), RawLaunch::Cuda(config)) => mlx_sys::mlx_fast_cuda_kernel_apply(
                    &raw mut outputs.0,
                    *kernel,
                    inputs.0,
                    *config,
                    stream.as_ptr(),
                ),
                _ => 1,
            }
        };
        // SAFETY: the vector is a valid object of MLX's.
        if status != 0 || unsafe { mlx_sys::mlx_vector_array_size(outputs.0) } != self.outputs {
            return Err(Exception::custom("MLX cannot add a custom kernel to the graph"));
        }
        let output = |index| {
            // SAFETY: `index` is within the vector; the new array holds its own reference.
            unsafe {
                let mut array = mlx_sys::mlx_array_new();
                let status = mlx_sys::mlx_vector_array_get(&raw mut array, outputs.0, index);
                let array = Array::from_ptr(array);
                if status == 0 { Ok(array) } else { Err(Exception::custom("a kernel's output is missing")) }
            }
        };
        (0..self.outputs).map(output).collect()
    }
}

impl Drop for CustomKernel {
    fn drop(&mut self) {
        // SAFETY: the kernel is freed once.
        unsafe {
            match self.raw {
                RawKernel::Metal(raw) => mlx_sys::mlx_fast_metal_kernel_free(raw),
                RawKernel::Cuda(raw) => mlx_sys::mlx_fast_cuda_kernel_free(raw),
            }
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        // SAFETY: the configuration is freed once.
        unsafe {
            match self.raw {
                RawLaunch::Metal(raw) => mlx_sys::mlx_fast_metal_kernel_config_free(raw),
                RawLaunch::Cuda(raw) => mlx_sys::mlx_fast_cuda_kernel_config_free(raw),
            }
        }
    }
}

/// A vector of arrays, freed when dropped.
struct Arrays(mlx_vector_array);

impl Drop for Arrays {
    fn drop(&mut self) {
        // SAFETY: the vector is freed once.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

/// A vector of strings, freed when dropped.
struct Strings(mlx_vector_string);

impl Strings {
    fn new(values: &[&str]) -> Result<Self> {
        let owned = values.iter().map(|value| c_string(value)).collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<_> = owned.iter().map(|value| value.as_ptr()).collect();
        // SAFETY: the call copies the strings.
        Ok(Self(unsafe { mlx_sys::mlx_vector_string_new_data(pointers.as_mut_ptr(), pointers.len()) }))
    }
}

impl Drop for Strings {
    fn drop(&mut self) {
        // SAFETY: the vector is freed once.
        unsafe { mlx_sys::mlx_vector_string_free(self.0) };
    }
}

fn c_string(value: &str) -> Result<CString> {
    CString::new(value).map_err(|error| Exception::custom(error.to_string()))
}
