//! TLS reports that we send. RFC 8460.

use std::sync::Arc;

use super::outgoing::SendError;
use crate::floor::Floor;
use crate::store::report_out::Due;

pub(super) async fn send(_floor: &Arc<Floor>, _due: &Due) -> Result<&'static str, SendError> {
    Err(SendError::Later("not built".to_owned()))
}
