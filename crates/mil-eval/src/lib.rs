//! Runs Core ML mlprogram packages on the CPU, operator by operator.
