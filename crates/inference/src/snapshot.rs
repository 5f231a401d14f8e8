//! A copy of a sequence's state that outlives it.

/// Element type of a state tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Signed byte.
    I8,
}

impl StateType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::I8 => 1,
        }
    }
}

/// One tensor of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTensor {
    /// Name, chosen by the backend and unique in the snapshot.
    pub name: String,
    /// Element type.
    pub dtype: StateType,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Elements, little-endian, row-major; its length is the product of the shape times the element's size.
    pub data: Vec<u8>,
}

/// The complete state of a sequence after `position` tokens, as named tensors. Only the backend that made them can
/// interpret them; a prompt cache may write them to a file and read them back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Number of tokens that the sequence had consumed.
    pub position: usize,
    /// Name of the backend and state layout that can restore it, as in `cpu-exact-2`.
    pub layout: String,
    /// Tensors of the state.
    pub tensors: Vec<SnapshotTensor>,
}

impl Snapshot {
    /// Size of all tensors in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.data.len() as u64).sum()
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&SnapshotTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}
