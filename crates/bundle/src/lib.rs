//! Output directories that appear whole or not at all, and the manifest that lets anyone re-check them.
