//! The command line's shared floor: opening models, drawing progress, printing tables.
