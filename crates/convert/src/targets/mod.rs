//! The targets.

mod coreml;
mod mlx;

pub use coreml::CoreMl;
pub use mlx::{Mlx, MlxRecipe, RecipeName};
