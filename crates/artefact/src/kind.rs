//! The kinds of model directories.

/// The kind of model that a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArtefactKind {
    /// A float checkpoint as Hugging Face publishes it.
    Checkpoint,
    /// An MLX model: q35's, mlx-lm's, or the form that speech-swift loads.
    Mlx,
    /// Core ML packages (`.mlpackage`).
    CoreMl,
    /// Compiled Core ML packages (`.mlmodelc`) without the packages that they were compiled from.
    CompiledCoreMl,
}

impl ArtefactKind {
    /// The kind's name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "a float checkpoint",
            Self::Mlx => "an MLX model",
            Self::CoreMl => "Core ML packages",
            Self::CompiledCoreMl => "compiled Core ML packages",
        }
    }
}
