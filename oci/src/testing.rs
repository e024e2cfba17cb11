//! Fakes at the edge, for tests.
