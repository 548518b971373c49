//! The one ordered log. (Under construction: the doors.)
