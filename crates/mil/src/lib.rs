//! Core ML's mlprogram packages as a file format: protobuf messages, weight blobs, a typed MIL builder, and checks.
//!
//! Knows the format and the operators' types, not what any model computes.
