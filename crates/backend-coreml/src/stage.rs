//! The meaning of a function's inputs, outputs and states, recognised by name and shape.

use std::path::Path;

use q35_architecture::TextConfig;
use q35_mil_eval::Port;

use crate::OpenError;
use crate::predictor::{CacheIo, Signature};

/// The input that holds a function's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenInput {
    /// Ids, [1, tokens].
    Ids(String),
    /// Embeddings, [1, tokens, hidden].
    Embeddings(String),
}

/// The input that masks positions out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// [1, tokens]: 1 for a real token, 0 for padding behind it.
    Tokens(Port),
    /// [1, 1, 1, context], added to attention scores: 0 for visible positions, a large negative number for the others.
    Context(Port),
    /// The function has no mask.
    None,
}

/// A function that processes tokens: prefill (a chunk) or decode (one token).
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// Index of the predictor that holds the function.
    pub(crate) predictor: usize,
    pub(crate) function: String,
    /// Number of tokens per call, padding included.
    pub(crate) tokens: usize,
    pub(crate) token_input: TokenInput,
    pub(crate) mask: Mask,
    pub(crate) position: Option<Port>,
    /// Caches passed as an input and returned as an output of every call.
    pub(crate) caches: Vec<CacheIo>,
    pub(crate) states: Vec<Port>,
}

impl Stage {
    /// Recognises the features of `signature`, a function of `package`.
    ///
    /// # Errors
    /// [`OpenError::Form`] if a required feature is missing or a shape does not fit `config`.
    pub(crate) fn from_signature(
        package: &Path,
        predictor: usize,
        signature: &Signature,
        config: &TextConfig,
    ) -> Result<Self, OpenError> {
        let wrong = |what: String| OpenError::Form {
            package: package.to_owned(),
            function: signature.name.clone(),
            what,
        };
        let mut token_input = None;
        let (mut mask, mut position, mut caches) = (Mask::None, None, Vec::new());
        for port in &signature.inputs {
            let shape = &port.ty.shape[..];
            match port.name.as_str() {
                "input_ids" => match shape {
                    [1, tokens] => token_input = Some((TokenInput::Ids(port.name.clone()), *tokens)),
                    _ => return Err(wrong(format!("`input_ids` is {}, expected [1, tokens]", port.ty))),
                },
                "inputs_embeds" | "input_embeds" => match shape {
                    [1, tokens, hidden] if *hidden == config.hidden_size => {
                        token_input = Some((TokenInput::Embeddings(port.name.clone()), *tokens));
                    }
                    _ => {
                        return Err(wrong(format!(
                            "`{}` is {}, expected [1, tokens, hidden]",
                            port.name, port.ty
                        )));
                    }
                },
                "attention_mask" => {
                    mask = match shape {
                        [1, _] => Mask::Tokens(port.clone()),
                        [1, 1, 1, _] => Mask::Context(port.clone()),
                        _ => return Err(wrong(format!("`attention_mask` is {}", port.ty))),
                    }
                }
                "position" => position = Some(port.clone()),
                _ => caches.push(CacheIo {
                    output: cache_output(signature, port).ok_or_else(|| {
                        wrong(format!("the input `{}` has no output that updates it", port.name))
                    })?,
                    input: port.clone(),
                }),
            }
        }
        let (token_input, tokens) = token_input
            .ok_or_else(|| wrong("no input `input_ids`, `inputs_embeds` or `input_embeds`".to_owned()))?;
        let logits = signature.output("logits").ok_or_else(|| wrong("no output `logits`".to_owned()))?;
        if logits.ty.count() != config.vocab_size {
            return Err(wrong(format!(
                "`logits` is {}, the vocabulary has {}",
                logits.ty, config.vocab_size
            )));
        }
        if let Mask::Tokens(port) = &mask
            && port.ty.shape != [1, tokens]
        {
            return Err(wrong(format!("`attention_mask` is {} for {tokens} tokens", port.ty)));
        }
        if tokens == 0 {
            return Err(wrong("its token input is empty".to_owned()));
        }
        Ok(Self {
            predictor,
            function: signature.name.clone(),
            tokens,
            token_input,
            mask,
            position,
            caches,
            states: signature.states.clone(),
        })
    }

    /// Everything that persists between calls: cache inputs, then states.
    pub(crate) fn persistent(&self) -> impl Iterator<Item = &Port> {
        self.caches.iter().map(|cache| &cache.input).chain(&self.states)
    }

    /// Capacity of the KV cache in tokens, if the function has one.
    pub(crate) fn context(&self) -> Option<usize> {
        match &self.mask {
            Mask::Context(port) => port.ty.shape.last().copied(),
            _ => self.persistent().filter(|port| is_kv_cache(&port.name)).find_map(token_axis_length),
        }
    }
}

/// True for keys and values, whose last axis but one counts tokens; false for convolution windows and recurrent states.
pub(crate) fn is_kv_cache(name: &str) -> bool {
    ["kv_cache", "k_cache", "v_cache"].iter().any(|kind| name.starts_with(kind))
}

/// Length of a KV cache's token axis.
pub(crate) fn token_axis_length(port: &Port) -> Option<usize> {
    match port.ty.shape[..] {
        [.., tokens, _] => Some(tokens),
        _ => None,
    }
}

/// Name of the output with a cache input's next value: `conv_state_out` for `conv_state`, `kv_cache_out_3` (or
/// `kv_cache_3_out`) for `kv_cache_3`.
fn cache_output(signature: &Signature, input: &Port) -> Option<String> {
    let mut candidates = vec![format!("{}_out", input.name)];
    if let Some((stem, number)) = input.name.rsplit_once('_')
        && number.bytes().all(|b| b.is_ascii_digit())
    {
        candidates.push(format!("{stem}_out_{number}"));
    }
    candidates
        .into_iter()
        .find(|name| signature.output(name).is_some_and(|output| output.ty.shape == input.ty.shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_format_mil::{DType, TensorType};

    fn port(name: &str, shape: &[usize]) -> Port {
        Port { name: name.to_owned(), ty: TensorType::new(DType::F16, shape) }
    }

    #[test]
    fn cache_inputs_find_their_outputs() {
        let signature = Signature {
            name: "decode".to_owned(),
            inputs: Vec::new(),
            outputs: vec![
                port("kv_cache_out_3", &[2, 8]),
                port("conv_state_out", &[4]),
                port("x_0_out", &[1]),
            ],
            states: Vec::new(),
        };
        assert_eq!(cache_output(&signature, &port("kv_cache_3", &[2, 8])).as_deref(), Some("kv_cache_out_3"));
        assert_eq!(cache_output(&signature, &port("conv_state", &[4])).as_deref(), Some("conv_state_out"));
        assert_eq!(cache_output(&signature, &port("x_0", &[1])).as_deref(), Some("x_0_out"));
        assert_eq!(cache_output(&signature, &port("conv_state", &[5])), None);
    }

    #[test]
    fn only_keys_and_values_grow_with_the_tokens() {
        for name in ["kv_cache", "kv_cache_3", "k_cache_7", "v_cache_7"] {
            assert!(is_kv_cache(name));
        }
        assert!(!is_kv_cache("conv_state_0") && !is_kv_cache("recurrent_state"));
    }
}
