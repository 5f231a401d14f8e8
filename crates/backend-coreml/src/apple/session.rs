//! [`Session`] over Core ML.

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
use super::error::framework_error;
use super::model::LoadedPackage;

pub(crate) struct AppleSession {
    package: Arc<LoadedPackage>,
    /// Caches by the name of their input. `MLMultiArray`s, so that an output becomes the next input without a copy.
    caches: BTreeMap<String, (Port, Array)>,
    /// Arrays of the other inputs, by function and name, overwritten by each call.
    inputs: BTreeMap<(String, String), Array>,
    /// States by function, for the functions called so far: an `MLState` can be used only with its own `MLModel`.
    states: BTreeMap<String, Retained<MLState>>,
    /// The function whose state is the latest.
    current: Option<String>,
}

/// An array owned by one session.
struct Array(Retained<MLMultiArray>);

// SAFETY: one thread at a time uses a session, and an array is plain memory with a description.
unsafe impl Send for Array {}

impl AppleSession {
    pub fn new(package: Arc<LoadedPackage>, cache_inputs: &[Port]) -> Result<Self, PredictError> {
        let zero = |port: &Port| {
            let array = allocate(port)?;
            fill(&array, &Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]))?;
            Ok((port.name.clone(), (port.clone(), Array(array))))
        };
        let caches = autoreleasepool(|_| cache_inputs.iter().map(zero).collect::<Result<_, PredictError>>())?;
        Ok(Self { package, caches, inputs: BTreeMap::new(), states: BTreeMap::new(), current: None })
    }

    /// The state of `function`, brought up to date with the state of the function called before; `None` if the function
    /// is stateless.
    fn switch_to(&mut self, function: &str) -> Result<Option<Retained<MLState>>, PredictError> {
        let (signature, model) = self.package.function(function)?;
        if signature.states.is_empty() {
            return Ok(None);
        }
        let entry = self.states.entry(function.to_owned());
        // SAFETY: allocates a zeroed state.
        let state = entry.or_insert_with(|| unsafe { model.newState() }).clone();
        let previous = self.current.replace(function.to_owned()).filter(|previous| previous != function);
        if let Some(previous) = previous.and_then(|previous| self.states.get(&previous)) {
            for port in &signature.states {
                write_state(&state, &port.name, &read_state(previous, &port.name)?)?;
            }
        }
        Ok(Some(state))
    }

    /// The latest state; zeros of the first stateful function before any call.
    fn latest_state(&mut self) -> Result<Option<Retained<MLState>>, PredictError> {
        let stateful = self.package.signatures.iter().find(|signature| !signature.states.is_empty());
        match self.current.clone().or_else(|| stateful.map(|signature| signature.name.clone())) {
            Some(function) => self.switch_to(&function),
            None => Ok(None),
        }
    }

    /// The array of an input other than a cache, filled with the tensor's elements.
    fn filled_input(
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
            let array = match (self.caches.get(&port.name), call.inputs.get(&port.name)) {
                (Some((_, array)), _) => &*array.0,
                (None, Some(tensor)) => self.filled_input(call.function, port, tensor)?,
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
        // SAFETY: every value is an MLFeatureValue; the state was created by this model.
        let outputs = unsafe {
            let features = MLDictionaryFeatureProvider::initWithDictionary_error(
                MLDictionaryFeatureProvider::alloc(),
                &dictionary,
            )
            .map_err(framework_error)?;
            let features: &ProtocolObject<dyn MLFeatureProvider> = ProtocolObject::from_ref(&*features);
            match state {
                Some(state) => model.predictionFromFeatures_usingState_error(features, &state),
                None => model.predictionFromFeatures_error(features),
            }
        }
        .map_err(framework_error)?;
        let array_of = |name: &str| {
            // SAFETY: plain getters.
            let array = unsafe {
                let value = outputs.featureValueForName(&NSString::from_str(name));
                value.and_then(|value| value.multiArrayValue())
            };
            array.ok_or_else(|| PredictError::Framework(format!("no output `{name}`")))
        };
        for cache in call.caches {
            let entry = self.caches.get_mut(&cache.input.name);
            let (_, array) = entry.ok_or_else(|| PredictError::NoState(cache.input.name.clone()))?;
            *array = Array(array_of(&cache.output)?);
        }
        let is_cache = |port: &&Port| call.caches.iter().any(|cache| cache.output == port.name);
        let returned = signature.outputs.iter().filter(|port| !is_cache(port));
        returned.map(|port| Ok((port.name.clone(), to_tensor(&*array_of(&port.name)?)?))).collect()
    }
}

impl Session for AppleSession {
    fn predict(
        &mut self,
        call: Call<'_>,
        _watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError> {
        // Rust threads have no autorelease pool: without one, the framework's temporary objects would never be freed.
        autoreleasepool(|_| self.predict_in_pool(call))
    }

    fn state(&self, name: &str) -> Result<Tensor, PredictError> {
        autoreleasepool(|_| {
            if let Some((_, array)) = self.caches.get(name) {
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
            if let Some((port, array)) = self.caches.get_mut(name) {
                // A new array, because Core ML may still reference the old one as an output.
                let fresh = allocate(port)?;
                fill(&fresh, &value)?;
                *array = Array(fresh);
                return Ok(());
            }
            let state = self.latest_state()?.ok_or_else(|| PredictError::NoState(name.to_owned()))?;
            write_state(&state, name, &value)
        })
    }

    fn reset(&mut self) -> Result<(), PredictError> {
        let cache_inputs: Vec<Port> = self.caches.values().map(|(port, _)| port.clone()).collect();
        *self = Self::new(Arc::clone(&self.package), &cache_inputs)?;
        Ok(())
    }

    fn state_bytes(&self) -> u64 {
        let bytes = |port: &Port| port.ty.packed_bytes() as u64;
        let caches: u64 = self.caches.values().map(|(port, _)| bytes(port)).sum();
        let called =
            self.package.signatures.iter().filter(|signature| self.states.contains_key(&signature.name));
        caches + called.flat_map(|signature| &signature.states).map(bytes).sum::<u64>()
    }
}

fn with_state_array<T>(
    state: &MLState,
    name: &str,
    visit: impl Fn(&MLMultiArray) -> Result<T, PredictError>,
) -> Result<T, PredictError> {
    let outcome = RefCell::new(None);
    let block = RcBlock::new(|array: NonNull<MLMultiArray>| {
        // SAFETY: the array is valid during the block.
        *outcome.borrow_mut() = Some(visit(unsafe { array.as_ref() }));
    });
    // SAFETY: the block runs before the call returns and retains nothing.
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
