//! The float reference: Qwen3.5's text model in f32 on candle, the oracle against which every artefact is judged.
//!
//! [`Reference`] runs anything that can give its weights as numbers ([`q35_inference::Weights`]): a float checkpoint, or an
//! artefact's own dequantized weights. It is driven through [`q35_inference::Model`] and [`q35_inference::Sequence`] like every
//! backend. [`Layer`] is one decoder layer by itself, differentiable, for calibration.
//!
//! Written to be right first: every operation in f32, the recurrence in chunks whose triangular systems are solved
//! blockwise (see [`delta_rule`](mod@delta_rule)), and no other shortcuts. It knows nothing of quantization or of artefact formats.
//!
//! ```
//! use q35_inference::{Model, Observer, LogitsFor};
//! use q35_reference::{Device, Reference};
//!
//! struct Greedy(Option<usize>);
//! impl Observer for Greedy {
//!     fn logits(&mut self, _position: usize, row: &[f32]) {
//!         self.0 = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
//!     }
//! }
//!
//! let weights = q35_testkit::TinyCheckpoint::new().weights();
//! let model = Reference::load(&weights, Device::Cpu)?;
//! let mut sequence = model.new_sequence(64)?;
//! let mut greedy = Greedy(None);
//! sequence.extend(&[1, 2, 3], LogitsFor::LastToken, &mut greedy)?;
//! assert!(greedy.0.is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod delta_rule;
mod device;
mod full_attention;
mod layer;
pub mod layerwise;
mod linear_attention;
mod model;
pub mod ops;
mod sequence;

pub use device::{DeviceError, open_device};
pub use full_attention::{FullAttention, KeyValueCache, Rotation};
pub use layer::{Layer, LayerState, Mixer, Tap, Taps, no_taps};
pub use linear_attention::{LinearAttention, LinearState};
pub use model::{LoadError, Reference};
pub use q35_inference::Device;
