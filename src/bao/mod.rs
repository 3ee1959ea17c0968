//! bao: to be written.
