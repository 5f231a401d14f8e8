//! What a function's inputs, outputs and states are for.

use std::path::Path;

use q35_architecture::TextConfig;
use q35_mil_eval::Port;

use crate::OpenError;
use crate::predictor::{Kept, Signature};

/// How the tokens enter a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenInput {
    /// Ids, [1, tokens].
    Ids(String),
    /// Embeddings, [1, tokens, hidden].
    Embeddings(String),
}

/// How a function is told which positions count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// [1, tokens]: 1 for a real token, 0 for padding behind it.
    Tokens(Port),
    /// [1, 1, 1, context]: 0 for what may be attended to, a large negative number elsewhere.
    Context(Port),
    /// It is not.
    None,
}

/// A function that consumes tokens.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// Which of the model's predictors has it.
    pub(crate) predictor: usize,
    pub(crate) function: String,
    /// Tokens that one call takes.
    pub(crate) tokens: usize,
    pub(crate) token_input: TokenInput,
    pub(crate) mask: Mask,
    pub(crate) position: Option<Port>,
    /// Caches that go in and come out of every call.
    pub(crate) carried: Vec<Kept>,
    pub(crate) states: Vec<Port>,
}

impl Stage {
    /// Finds out what a function's features are for.
    pub(crate) fn of(
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
        let (mut mask, mut position, mut carried) = (Mask::None, None, Vec::new());
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
                _ => carried.push(Kept {
                    output: carried_output(signature, port).ok_or_else(|| {
                        wrong(format!("the input `{}` has no output to be carried from", port.name))
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
            return Err(wrong("it takes no tokens".to_owned()));
        }
        Ok(Self {
            predictor,
            function: signature.name.clone(),
            tokens,
            token_input,
            mask,
            position,
            carried,
            states: signature.states.clone(),
        })
    }

    /// Everything that lives from call to call: carried inputs and states.
    pub(crate) fn memory(&self) -> impl Iterator<Item = &Port> {
        self.carried.iter().map(|carried| &carried.input).chain(&self.states)
    }

    /// Tokens that the caches have room for, if there is any cache of tokens.
    pub(crate) fn context(&self) -> Option<usize> {
        match &self.mask {
            Mask::Context(port) => port.ty.shape.last().copied(),
            _ => self.memory().filter(|port| is_token_cache(&port.name)).find_map(token_axis_length),
        }
    }
}

/// Whether a cache has an axis of tokens, the last but one: keys and values, as against convolution and recurrent
/// states.
pub(crate) fn is_token_cache(name: &str) -> bool {
    ["kv_cache", "k_cache", "v_cache"].iter().any(|kind| name.starts_with(kind))
}

/// Length of a token cache's axis of tokens.
pub(crate) fn token_axis_length(port: &Port) -> Option<usize> {
    match port.ty.shape[..] {
        [.., tokens, _] => Some(tokens),
        _ => None,
    }
}

/// The output that an input is carried from: `conv_state` from `conv_state_out`, `kv_cache_3` from `kv_cache_out_3`
/// (or `kv_cache_3_out`).
fn carried_output(signature: &Signature, input: &Port) -> Option<String> {
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
    fn carried_inputs_find_their_outputs() {
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
        assert_eq!(
            carried_output(&signature, &port("kv_cache_3", &[2, 8])).as_deref(),
            Some("kv_cache_out_3")
        );
        assert_eq!(carried_output(&signature, &port("conv_state", &[4])).as_deref(), Some("conv_state_out"));
        assert_eq!(carried_output(&signature, &port("x_0", &[1])).as_deref(), Some("x_0_out"));
        assert_eq!(carried_output(&signature, &port("conv_state", &[5])), None);
    }

    #[test]
    fn only_keys_and_values_grow_with_the_tokens() {
        for name in ["kv_cache", "kv_cache_3", "k_cache_7", "v_cache_7"] {
            assert!(is_token_cache(name));
        }
        assert!(!is_token_cache("conv_state_0") && !is_token_cache("recurrent_state"));
    }
}
