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
    /// Name, chosen by the backend, unique in the snapshot.
    pub name: String,
    /// Element type.
    pub dtype: StateType,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian, row-major, exactly the product of the shape times the element's size.
    pub data: Vec<u8>,
}

/// The complete state of a sequence after `position` tokens: named tensors whose meaning only the backend that made
/// them knows. It can be written to a file and read back by whoever keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Tokens consumed when it was taken.
    pub position: usize,
    /// Names the backend and layout that can restore it, "cpu-exact-2".
    pub layout: String,
    /// The state.
    pub tensors: Vec<SnapshotTensor>,
}

impl Snapshot {
    /// Bytes held.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.data.len() as u64).sum()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&SnapshotTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}
