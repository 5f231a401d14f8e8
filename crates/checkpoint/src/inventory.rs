//! Counts of a checkpoint's tensors: the text model's and the dropped ones.

/// A part of a checkpoint that text conversions drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The vision tower, `model.visual.*`.
    Vision,
    /// The multi-token-prediction block, `mtp.*`.
    MultiToken,
    /// An `lm_head.weight` beside a tied embedding, which replaces it.
    TiedHead,
    /// Stored buffers that the model computes itself, `rotary_emb.inv_freq`.
    Buffers,
}

impl Part {
    /// Name for summaries.
    pub fn label(self) -> &'static str {
        match self {
            Self::Vision => "vision tower",
            Self::MultiToken => "multi-token-prediction block",
            Self::TiedHead => "copy of the tied head",
            Self::Buffers => "stored buffers",
        }
    }
}

/// The tensors of one dropped part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The part.
    pub part: Part,
    /// Names in the files, in the order of the files.
    pub names: Vec<String>,
    /// Number of weights.
    pub elements: u64,
    /// Bytes in the files.
    pub bytes: u64,
}

/// Counts and sizes of a checkpoint's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Number of the text model's tensors.
    pub kept_count: usize,
    /// Number of the text model's weights.
    pub kept_elements: u64,
    /// Bytes of the text model's tensors.
    pub kept_bytes: u64,
    /// Dropped parts, without those that the checkpoint does not have.
    pub dropped: Vec<Dropped>,
}

impl Inventory {
    /// Number of dropped tensors.
    pub fn dropped_count(&self) -> usize {
        self.dropped.iter().map(|dropped| dropped.names.len()).sum()
    }

    /// Bytes of the dropped tensors.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped.iter().map(|dropped| dropped.bytes).sum()
    }

    pub(crate) fn drop_tensor(&mut self, part: Part, name: &str, shape: &[usize], bytes: usize) {
        let index = self.dropped.iter().position(|dropped| dropped.part == part).unwrap_or_else(|| {
            self.dropped.push(Dropped { part, names: Vec::new(), elements: 0, bytes: 0 });
            self.dropped.len() - 1
        });
        let dropped = &mut self.dropped[index];
        dropped.names.push(name.to_owned());
        dropped.elements += shape.iter().map(|&dim| dim as u64).product::<u64>();
        dropped.bytes += bytes as u64;
    }
}
