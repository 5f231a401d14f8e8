//! The float reference: Qwen3.5's text model in f32 on candle, the oracle against which every artefact is compared.
//!
//! [`Reference`] runs any [`q35_inference::Weights`]: a float checkpoint, or the dequantized weights of an artefact. Like
//! every backend it implements [`q35_inference::Model`] and [`q35_inference::Sequence`]. [`Layer`] is a single decoder
//! layer, differentiable, for calibration; [`layerwise`] runs whole texts with one layer in memory.
//!
//! Correctness comes first: every operation is in f32, the recurrence in chunks whose triangular systems are solved
//! blockwise (see [`delta_rule`](mod@delta_rule)), without other shortcuts. The crate must not know quantization or
//! artefact formats.
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
mod error;
pub mod layerwise;
mod loaded;
mod model;
pub mod ops;
mod qwen3_5;
mod sequence;
mod tap;

pub use device::{DeviceError, open_device};
pub use loaded::LoadError;
pub use model::Reference;
pub use q35_inference::Device;
pub use qwen3_5::{
    FullAttention, KeyValueCache, Layer, LayerState, LinearAttention, LinearState, Mixer, RotaryEmbedding,
};
pub use tap::{Tap, Taps, no_taps};
