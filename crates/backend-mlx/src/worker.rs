//! The thread on which all MLX arrays are built and evaluated.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::engine::Engine;
use crate::error::MlxBackendError;

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// Handle of the thread that owns the engine; dropping it ends the thread and frees the model.
pub(crate) struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread and builds the engine on it.
    pub fn start(
        build: impl FnOnce() -> Result<Engine, MlxBackendError> + Send + 'static,
    ) -> Result<Self, MlxBackendError> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, outcome) = channel();
        let run = move || match build() {
            Ok(mut engine) => {
                drop(ready.send(Ok(())));
                for job in inbox {
                    job(&mut engine);
                }
                // MLX's allocator caches freed arrays; a failure to release them is harmless.
                drop(engine);
                drop(mlx_rs::memory::clear_cache());
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let thread =
            std::thread::Builder::new().name("q35-mlx".into()).spawn(run).map_err(MlxBackendError::Thread)?;
        outcome.recv().map_err(|_| MlxBackendError::Stopped)??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `job` on the thread and waits for its result.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Engine) -> Result<T, MlxBackendError> + Send + 'static,
    ) -> Result<T, MlxBackendError> {
        let (result, outcome) = channel();
        let job: Job = Box::new(move |engine| drop(result.send(job(engine))));
        self.jobs
            .as_ref()
            .ok_or(MlxBackendError::Stopped)?
            .send(job)
            .map_err(|_| MlxBackendError::Stopped)?;
        outcome.recv().map_err(|_| MlxBackendError::Stopped)?
    }

    /// Sends `job` without waiting for it.
    pub fn send(&self, job: impl FnOnce(&mut Engine) + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            drop(jobs.send(Box::new(job)));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
