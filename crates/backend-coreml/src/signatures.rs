//! Signatures read from a package's description.

use std::path::Path;

use q35_format_mil::proto::{ArrayFeatureType, FeatureDescription, FeatureKind};
use q35_format_mil::{DType, Package, TensorType};
use q35_mil_eval::Port;

use crate::PredictError;
use crate::predictor::Signature;

/// Reads the signatures of a package's functions, ordered by name, from its description; the program is not loaded.
///
/// # Errors
/// The package cannot be read, or a feature is not an array of fixed shape.
pub fn package_signatures(package: &Path) -> Result<Vec<Signature>, PredictError> {
    let package = Package::open(package).map_err(|error| PredictError::Framework(error.to_string()))?;
    let description = package.model().description.clone().unwrap_or_default();
    let signature = |name: &str, inputs: &[_], outputs: &[_], states: &[_]| {
        let ports =
            |features: &[FeatureDescription]| features.iter().map(port).collect::<Result<Vec<_>, _>>();
        let (inputs, outputs, states) = (ports(inputs)?, ports(outputs)?, ports(states)?);
        Ok(Signature { name: name.to_owned(), inputs, outputs, states })
    };
    let mut signatures = match &description.functions[..] {
        [] => vec![signature("main", &description.input, &description.output, &description.state)?],
        functions => functions
            .iter()
            .map(|function| signature(&function.name, &function.input, &function.output, &function.state))
            .collect::<Result<_, PredictError>>()?,
    };
    signatures.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(signatures)
}

fn port(feature: &FeatureDescription) -> Result<Port, PredictError> {
    let wrong =
        || PredictError::Framework(format!("feature `{}` is not an array of fixed shape", feature.name));
    let kind = feature.r#type.as_ref().and_then(|ty| ty.kind.as_ref()).ok_or_else(wrong)?;
    let array: &ArrayFeatureType = match kind {
        FeatureKind::MultiArray(array) => array,
        FeatureKind::State(state) => state.array_type.as_ref().ok_or_else(wrong)?,
    };
    let dtype = DType::from_array_code(array.data_type).ok_or_else(wrong)?;
    let shape: Vec<usize> = array
        .shape
        .iter()
        .map(|size| usize::try_from(*size))
        .collect::<Result<_, _>>()
        .map_err(|_| wrong())?;
    Ok(Port { name: feature.name.clone(), ty: TensorType::new(dtype, &shape) })
}
