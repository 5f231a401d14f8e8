//! Proof that a converted model still speaks like the original.
