//! The one gate. (Under construction: the doors.)

mod principal;

pub use principal::{Permissions, Principal, Scope};
