//! Where Core ML means to run each operation.

use std::path::Path;
use std::sync::mpsc::channel;

use block2::RcBlock;
use objc2::rc::Retained;
use objc2::runtime::{AnyObject, ProtocolObject};
use objc2::{ClassType, Message};
use objc2_core_ml::{
    MLCPUComputeDevice, MLComputeDeviceProtocol, MLComputePlan, MLGPUComputeDevice,
    MLModelStructureProgramBlock, MLNeuralEngineComputeDevice,
};
use objc2_foundation::NSError;
use q35_coreml_backend::PredictError;

use crate::compiled::{compiled, url};
use crate::predictor::ComputeUnits;

/// One operation of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedOperation {
    /// The function it belongs to.
    pub function: String,
    /// The operator, "ios18.linear".
    pub operator: String,
    /// Its first output.
    pub output: String,
    /// The unit that Core ML prefers: "CPU", "GPU", "Neural Engine"; nothing for constants.
    pub preferred: Option<&'static str>,
}

struct Plan(Retained<MLComputePlan>);

// SAFETY: the plan is immutable once loaded, and is moved from the thread that loaded it to the one that reads it.
unsafe impl Send for Plan {}

/// The plan of every function of a package, as an `MLComputePlan` gives it.
///
/// # Errors
/// The package cannot be compiled, or Core ML makes no plan for it.
pub fn compute_plan(
    package: &Path,
    units: ComputeUnits,
    cache: &Path,
) -> Result<Vec<PlannedOperation>, PredictError> {
    let compiled = compiled(package, cache)?;
    let (send, receive) = channel();
    let loaded = RcBlock::new(move |plan: *mut MLComputePlan, error: *mut NSError| {
        // SAFETY: Core ML hands over either a plan or an error, alive during the block; both are retained here.
        let outcome = unsafe {
            match (plan.as_ref(), error.as_ref()) {
                (Some(plan), _) => Ok(Plan(plan.retain())),
                (None, Some(error)) => Err(error.localizedDescription().to_string()),
                (None, None) => Err("no plan and no error".to_owned()),
            }
        };
        drop(send.send(outcome));
    });
    // SAFETY: a compiled model's URL and a configuration of our own; the block may run on any thread.
    unsafe {
        MLComputePlan::loadContentsOfURL_configuration_completionHandler(
            &url(&compiled),
            &units.configuration(None),
            &loaded,
        );
    }
    let plan = receive.recv().unwrap_or_else(|_| Err("Core ML did not answer".to_owned()));
    let plan = plan.map_err(PredictError::Framework)?;
    // SAFETY: plain getters.
    let program = unsafe { plan.0.modelStructure().program() };
    let program = program.ok_or_else(|| PredictError::Framework("not an mlprogram".to_owned()))?;
    let mut operations = Vec::new();
    // SAFETY: as above.
    let functions = unsafe { program.functions() };
    let (names, bodies) = functions.to_vecs();
    for (name, body) in names.iter().zip(bodies) {
        // SAFETY: as above.
        let block = unsafe { body.block() };
        collect(&plan.0, &name.to_string(), &block, &mut operations);
    }
    Ok(operations)
}

fn collect(
    plan: &MLComputePlan,
    function: &str,
    block: &MLModelStructureProgramBlock,
    into: &mut Vec<PlannedOperation>,
) {
    // SAFETY: plain getters on live objects.
    unsafe {
        for operation in block.operations().iter() {
            let output = operation.outputs().iter().next().map(|value| value.name().to_string());
            let usage = plan.computeDeviceUsageForMLProgramOperation(&operation);
            into.push(PlannedOperation {
                function: function.to_owned(),
                operator: operation.operatorName().to_string(),
                output: output.unwrap_or_default(),
                preferred: usage.map(|usage| device_name(&usage.preferredComputeDevice())),
            });
            for inner in operation.blocks().iter() {
                collect(plan, function, &inner, into);
            }
        }
    }
}

fn device_name(device: &ProtocolObject<dyn MLComputeDeviceProtocol>) -> &'static str {
    let object: &AnyObject = device.as_ref();
    let is = |class: &objc2::runtime::AnyClass| object.class() == class;
    if is(MLNeuralEngineComputeDevice::class()) {
        "Neural Engine"
    } else if is(MLGPUComputeDevice::class()) {
        "GPU"
    } else if is(MLCPUComputeDevice::class()) {
        "CPU"
    } else {
        "another unit"
    }
}
