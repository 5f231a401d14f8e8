//! The embedded model: q35-nano's checkpoint as bytes in the binary.
