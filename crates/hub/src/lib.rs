//! Finds a model by directory or hub id, fetching what is missing.
