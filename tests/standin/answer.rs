//! The shapes of answers, as the real server has them.

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

/// An answer before it is sent.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, body: &Value) -> Self {
        Self::raw(status, body.to_string().into_bytes())
    }

    pub fn raw(status: u16, body: Vec<u8>) -> Self {
        Self {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body,
        }
    }

    pub fn empty() -> Self {
        Self::raw(204, Vec::new())
    }

    /// An error in the server's shape.
    pub fn error(status: u16, words: &str) -> Self {
        let errors: Vec<&str> = if words.is_empty() {
            Vec::new()
        } else {
            vec![words]
        };
        Self::new(status, &json!({ "errors": errors }))
    }

    /// A policy says no.
    pub fn denied() -> Self {
        Self::error(403, "1 error occurred:\n\t* permission denied\n\n")
    }

    /// The token is not alive.
    pub fn dead_token() -> Self {
        Self::error(403, "permission denied")
    }

    pub fn data(data: &Value) -> Self {
        Self::new(200, &envelope(data, &json!(null), "", 0, false))
    }

    pub fn data_with_status(status: u16, data: &Value) -> Self {
        Self::new(status, &envelope(data, &json!(null), "", 0, false))
    }

    pub fn auth(auth: &Value) -> Self {
        Self::new(200, &envelope(&json!(null), auth, "", 0, false))
    }

    pub fn lease(id: &str, seconds: u64, renewable: bool, data: &Value) -> Self {
        Self::new(200, &envelope(data, &json!(null), id, seconds, renewable))
    }
}

fn envelope(data: &Value, auth: &Value, lease: &str, seconds: u64, renewable: bool) -> Value {
    json!({
        "request_id": super::state::uuid(), "lease_id": lease, "renewable": renewable, "lease_duration": seconds,
        "data": data, "wrap_info": null, "warnings": null, "auth": auth,
    })
}
