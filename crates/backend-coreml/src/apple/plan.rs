//! Core ML's assignment of operations to compute units.

use std::path::Path;
use std::sync::mpsc::channel;

use crate::{ComputeUnits, PlannedOperation, PredictError, package_signatures};
use block2::RcBlock;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2::{ClassType, Message};
use objc2_core_ml::{
    MLCPUComputeDevice, MLComputeDeviceProtocol, MLComputePlan, MLGPUComputeDevice,
    MLModelStructureProgramBlock, MLNeuralEngineComputeDevice,
};
use objc2_foundation::{NSError, NSString};

use super::compile::{compile, file_url};
use super::model::{configuration, function_name};

struct Plan(Retained<MLComputePlan>);

// SAFETY: the plan is immutable once loaded, and moves from the thread that loaded it to the one that reads it.
unsafe impl Send for Plan {}

/// The operations of all functions of a package with the units that an `MLComputePlan` assigns to them.
///
/// # Errors
/// The package cannot be compiled, or Core ML cannot make a plan for it.
pub fn compute_plan(
    package: &Path,
    units: ComputeUnits,
    cache: Option<&Path>,
) -> Result<Vec<PlannedOperation>, PredictError> {
    autoreleasepool(|_| {
        let signatures = package_signatures(package)?;
        let mut operations = Vec::new();
        for signature in &signatures {
            let compiled = compile(package, cache)?;
            // A plan covers the function that the configuration names.
            let plan = load(&compiled, units, function_name(&signatures, signature))?;
            // SAFETY: plain getters.
            let program = unsafe { plan.0.modelStructure().program() };
            let program = program.ok_or_else(|| PredictError::Framework("not an mlprogram".to_owned()))?;
            // SAFETY: as above.
            let body = unsafe { program.functions() }.objectForKey(&NSString::from_str(&signature.name));
            let body = body.ok_or_else(|| {
                PredictError::Framework(format!("the plan has no function `{}`", signature.name))
            })?;
            // SAFETY: as above.
            let block = unsafe { body.block() };
            collect(&plan.0, &signature.name, &block, &mut operations);
        }
        Ok(operations)
    })
}

fn load(compiled: &Path, units: ComputeUnits, function: Option<&str>) -> Result<Plan, PredictError> {
    let (send, receive) = channel();
    let loaded = RcBlock::new(move |plan: *mut MLComputePlan, error: *mut NSError| {
        // SAFETY: Core ML passes either a plan or an error, valid during the block; both are retained here.
        let outcome = unsafe {
            match (plan.as_ref(), error.as_ref()) {
                (Some(plan), _) => Ok(Plan(plan.retain())),
                (None, Some(error)) => Err(error.localizedDescription().to_string()),
                (None, None) => Err("no plan and no error".to_owned()),
            }
        };
        drop(send.send(outcome));
    });
    // SAFETY: the arguments are a compiled model's URL and a new configuration; the block may run on any thread.
    unsafe {
        MLComputePlan::loadContentsOfURL_configuration_completionHandler(
            &file_url(compiled),
            &configuration(units, function),
            &loaded,
        );
    }
    // Dropping this reference to the block drops its sender, so that `recv` fails if the framework never calls it.
    drop(loaded);
    let plan = receive.recv().unwrap_or_else(|_| Err("Core ML did not answer".to_owned()));
    plan.map_err(PredictError::Framework)
}

fn collect(
    plan: &MLComputePlan,
    function: &str,
    block: &MLModelStructureProgramBlock,
    into: &mut Vec<PlannedOperation>,
) {
    // SAFETY: plain getters on live, unshared objects.
    unsafe {
        for operation in block.operations().iter() {
            let output = operation.outputs().iter().next().map(|value| value.name().to_string());
            let usage = plan.computeDeviceUsageForMLProgramOperation(&operation);
            let cost = plan.estimatedCostOfMLProgramOperation(&operation);
            into.push(PlannedOperation {
                function: function.to_owned(),
                operator: operation.operatorName().to_string(),
                output: output.unwrap_or_default(),
                preferred: usage.map(|usage| device_name(&usage.preferredComputeDevice())),
                cost: cost.map(|cost| cost.weight()),
            });
            for inner in operation.blocks().iter() {
                collect(plan, function, &inner, into);
            }
        }
    }
}

fn device_name(device: &ProtocolObject<dyn MLComputeDeviceProtocol>) -> &'static str {
    if device.isKindOfClass(MLNeuralEngineComputeDevice::class()) {
        "Neural Engine"
    } else if device.isKindOfClass(MLGPUComputeDevice::class()) {
        "GPU"
    } else if device.isKindOfClass(MLCPUComputeDevice::class()) {
        "CPU"
    } else {
        "another unit"
    }
}
