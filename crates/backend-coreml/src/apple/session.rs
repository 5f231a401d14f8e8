//! Predictions that share states and caches.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::{Call, Port, PredictError, Session, Tensor, Watcher};
use block2::RcBlock;
use objc2::AnyThread;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{AnyObject, ProtocolObject};
use objc2_core_ml::{MLDictionaryFeatureProvider, MLFeatureProvider, MLFeatureValue, MLMultiArray, MLState};
use objc2_foundation::{NSDictionary, NSString};

use super::array::{allocate, fill, to_tensor};
use super::compiled::in_words;
use super::predictor::Loaded;

pub(crate) struct AppleSession {
    package: Arc<Loaded>,
    /// Values kept for inputs, by their names. Core ML's own arrays: an output becomes an input without being copied.
    kept: BTreeMap<String, (Port, Array)>,
    /// Arrays for the other inputs, by function and name, filled anew for each call.
    inputs: BTreeMap<(String, String), Array>,
    /// One per function with states that was called: a state belongs to the model that made it.
    states: BTreeMap<String, Retained<MLState>>,
    /// The function whose state is the newest.
    current: Option<String>,
}

/// An array that only one session has.
struct Array(Retained<MLMultiArray>);

// SAFETY: a session is used by one thread at a time, and an array is plain memory with a description.
unsafe impl Send for Array {}

impl AppleSession {
    pub fn new(package: Arc<Loaded>, kept: &[Port]) -> Result<Self, PredictError> {
        let zero = |port: &Port| {
            let array = allocate(port)?;
            fill(&array, &Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]))?;
            Ok((port.name.clone(), (port.clone(), Array(array))))
        };
        let kept = autoreleasepool(|_| kept.iter().map(zero).collect::<Result<_, PredictError>>())?;
        Ok(Self { package, kept, inputs: BTreeMap::new(), states: BTreeMap::new(), current: None })
    }

    /// The state of `function`, if it has any, made the newest by copying the last owner's into it.
    fn switch_to(&mut self, function: &str) -> Result<Option<Retained<MLState>>, PredictError> {
        let (signature, model) = self.package.function(function)?;
        if signature.states.is_empty() {
            return Ok(None);
        }
        let own = self.states.entry(function.to_owned());
        // SAFETY: allocates a state of zeros.
        let own = own.or_insert_with(|| unsafe { model.newState() }).clone();
        let last = self.current.replace(function.to_owned()).filter(|last| last != function);
        if let Some(last) = last.and_then(|last| self.states.get(&last)) {
            for port in &signature.states {
                write_state(&own, &port.name, &read_state(last, &port.name)?)?;
            }
        }
        Ok(Some(own))
    }

    fn newest(&mut self) -> Result<Option<Retained<MLState>>, PredictError> {
        let stateful = self.package.signatures.iter().find(|signature| !signature.states.is_empty());
        match self.current.clone().or_else(|| stateful.map(|signature| signature.name.clone())) {
            Some(function) => self.switch_to(&function),
            None => Ok(None),
        }
    }

    /// The array for an input that is not kept, with the tensor's elements.
    fn filled(
        &mut self,
        function: &str,
        port: &Port,
        tensor: &Tensor,
    ) -> Result<&MLMultiArray, PredictError> {
        let key = (function.to_owned(), port.name.clone());
        let array = match self.inputs.entry(key) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Array(allocate(port)?)),
        };
        fill(&array.0, tensor)?;
        Ok(&array.0)
    }

    fn predict_in_pool(&mut self, call: Call<'_>) -> Result<BTreeMap<String, Tensor>, PredictError> {
        let state = self.switch_to(call.function)?;
        let package = Arc::clone(&self.package);
        let (signature, model) = package.function(call.function)?;
        let mut names = Vec::new();
        let mut values: Vec<Retained<AnyObject>> = Vec::new();
        for port in &signature.inputs {
            let array = match (self.kept.get(&port.name), call.inputs.get(&port.name)) {
                (Some((_, array)), _) => &*array.0,
                (None, Some(tensor)) => self.filled(call.function, port, tensor)?,
                (None, None) => {
                    return Err(PredictError::Framework(format!("input `{}` is missing", port.name)));
                }
            };
            names.push(NSString::from_str(&port.name));
            // SAFETY: wraps the array.
            let value = unsafe { MLFeatureValue::featureValueWithMultiArray(array) };
            values.push(Retained::into_super(Retained::into_super(value)));
        }
        let keys: Vec<&NSString> = names.iter().map(|name| &**name).collect();
        let dictionary = NSDictionary::from_retained_objects(&keys, &values);
        // SAFETY: every value is an MLFeatureValue; the state was made by this very model.
        let outputs = unsafe {
            let features = MLDictionaryFeatureProvider::initWithDictionary_error(
                MLDictionaryFeatureProvider::alloc(),
                &dictionary,
            )
            .map_err(in_words)?;
            let features: &ProtocolObject<dyn MLFeatureProvider> = ProtocolObject::from_ref(&*features);
            match state {
                Some(state) => model.predictionFromFeatures_usingState_error(features, &state),
                None => model.predictionFromFeatures_error(features),
            }
        }
        .map_err(in_words)?;
        let array_of = |name: &str| {
            // SAFETY: plain getters.
            let array = unsafe {
                let value = outputs.featureValueForName(&NSString::from_str(name));
                value.and_then(|value| value.multiArrayValue())
            };
            array.ok_or_else(|| PredictError::Framework(format!("no output `{name}`")))
        };
        for value in call.kept {
            let entry = self.kept.get_mut(&value.input.name);
            let (_, array) = entry.ok_or_else(|| PredictError::NoState(value.input.name.clone()))?;
            *array = Array(array_of(&value.output)?);
        }
        let given = signature.outputs.iter().filter(|port| call.kept.iter().all(|k| k.output != port.name));
        given.map(|port| Ok((port.name.clone(), to_tensor(&*array_of(&port.name)?)?))).collect()
    }
}

impl Session for AppleSession {
    fn predict(
        &mut self,
        call: Call<'_>,
        _watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError> {
        // A thread of Rust's has no pool of its own: without one, what the framework hands over would pile up.
        autoreleasepool(|_| self.predict_in_pool(call))
    }

    fn state(&self, name: &str) -> Result<Tensor, PredictError> {
        autoreleasepool(|_| {
            if let Some((_, array)) = self.kept.get(name) {
                return to_tensor(&array.0);
            }
            if let Some(state) = self.current.as_ref().and_then(|current| self.states.get(current)) {
                return read_state(state, name);
            }
            let states = self.package.signatures.iter().flat_map(|signature| &signature.states);
            let port = states.into_iter().find(|port| port.name == name);
            let port = port.ok_or_else(|| PredictError::NoState(name.to_owned()))?;
            Ok(Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]))
        })
    }

    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError> {
        autoreleasepool(|_| {
            if let Some((port, array)) = self.kept.get_mut(name) {
                // Core ML may still hold the old array as an output.
                let fresh = allocate(port)?;
                fill(&fresh, &value)?;
                *array = Array(fresh);
                return Ok(());
            }
            let state = self.newest()?.ok_or_else(|| PredictError::NoState(name.to_owned()))?;
            write_state(&state, name, &value)
        })
    }

    fn reset(&mut self) -> Result<(), PredictError> {
        let kept: Vec<Port> = self.kept.values().map(|(port, _)| port.clone()).collect();
        *self = Self::new(Arc::clone(&self.package), &kept)?;
        Ok(())
    }

    fn state_bytes(&self) -> u64 {
        let bytes = |port: &Port| port.ty.packed_bytes() as u64;
        let kept: u64 = self.kept.values().map(|(port, _)| bytes(port)).sum();
        let called =
            self.package.signatures.iter().filter(|signature| self.states.contains_key(&signature.name));
        kept + called.flat_map(|signature| &signature.states).map(bytes).sum::<u64>()
    }
}

fn with_state_array<T>(
    state: &MLState,
    name: &str,
    visit: impl Fn(&MLMultiArray) -> Result<T, PredictError>,
) -> Result<T, PredictError> {
    let outcome = RefCell::new(None);
    let block = RcBlock::new(|array: NonNull<MLMultiArray>| {
        // SAFETY: Core ML keeps the array alive for the duration of the block.
        *outcome.borrow_mut() = Some(visit(unsafe { array.as_ref() }));
    });
    // SAFETY: the block runs before this returns and keeps nothing.
    unsafe { state.getMultiArrayForStateNamed_handler(&NSString::from_str(name), &block) };
    drop(block);
    outcome.into_inner().unwrap_or_else(|| Err(PredictError::NoState(name.to_owned())))
}

fn read_state(state: &MLState, name: &str) -> Result<Tensor, PredictError> {
    with_state_array(state, name, to_tensor)
}

fn write_state(state: &MLState, name: &str, value: &Tensor) -> Result<(), PredictError> {
    with_state_array(state, name, |array| fill(array, value))
}
