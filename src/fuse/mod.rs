//! fuse: to be written.
