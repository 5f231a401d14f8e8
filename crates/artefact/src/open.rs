//! Opening a recognised directory as a model.

use std::sync::Arc;

use q35_backend::{Backend, BackendError, RunOptions, Running, open_coreml, open_mlx};
use q35_format_mlx::MlxDirectory;

use crate::files::is_compiled;
use crate::recognise::{list, names};
use crate::{ArtefactDir, ArtefactError, ArtefactKind};

impl ArtefactDir {
    /// Opens the model: an MLX model or Core ML packages with the requested backend, a float checkpoint with the float
    /// reference (if this crate's feature `reference` is on).
    ///
    /// # Errors
    /// The files are damaged, or the requested backend does not run this kind of model.
    pub fn open_model(&self, options: &RunOptions) -> Result<Running, ArtefactError> {
        let running = match self.kind {
            ArtefactKind::Checkpoint => return self.open_reference(options),
            ArtefactKind::CompiledCoreMl => return Err(self.refuse_compiled()),
            ArtefactKind::Mlx => open_mlx(Arc::new(MlxDirectory::open(&self.dir)?), options),
            ArtefactKind::CoreMl => open_coreml(&self.dir, options),
        };
        running.map_err(|source| self.backend_error(source))
    }

    /// The error of compiled Core ML packages, which q35 does not read.
    pub fn refuse_compiled(&self) -> ArtefactError {
        let found: Vec<String> = names(&self.dir).into_iter().filter(|name| is_compiled(name)).collect();
        ArtefactError::Compiled { dir: self.dir.clone(), found: list(&found) }
    }

    fn backend_error(&self, source: BackendError) -> ArtefactError {
        ArtefactError::Backend { dir: self.dir.clone(), source }
    }

    fn open_reference(&self, options: &RunOptions) -> Result<Running, ArtefactError> {
        match options.backend {
            Backend::Auto | Backend::Cpu => reference::open(self, options),
            named => Err(self.backend_error(BackendError::Unsuitable {
                backend: named.name(),
                form: ArtefactKind::Checkpoint.name(),
            })),
        }
    }
}

#[cfg(feature = "reference")]
mod reference {
    use super::*;
    use q35_backend::Activations;
    use q35_checkpoint::Checkpoint;
    use q35_reference::Reference;

    pub fn open(artefact: &ArtefactDir, options: &RunOptions) -> Result<Running, ArtefactError> {
        let checkpoint = Checkpoint::open(&artefact.dir)?;
        match Reference::load(&checkpoint, options.device.unwrap_or_default()) {
            Ok(model) => Ok(Running { model: Box::new(model), activations: Activations::F32 }),
            Err(error) => {
                Err(ArtefactError::Reference { dir: artefact.dir.clone(), message: error.to_string() })
            }
        }
    }
}

#[cfg(not(feature = "reference"))]
mod reference {
    use super::*;

    pub fn open(artefact: &ArtefactDir, _options: &RunOptions) -> Result<Running, ArtefactError> {
        let message = "this build has no float reference".to_owned();
        Err(ArtefactError::Reference { dir: artefact.dir.clone(), message })
    }
}
