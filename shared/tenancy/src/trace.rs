//! Calls to the registry belong to the trace of the call that needs them.

use opentelemetry::propagation::Injector;
use opentelemetry::{Context, global};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Passes the current trace on (W3C Trace Context).
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassTrace;

impl Interceptor for PassTrace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut metadata = Metadata(request.metadata_mut());
        global::get_text_map_propagator(|format| {
            format.inject_context(&Context::current(), &mut metadata);
        });
        Ok(request)
    }
}

struct Metadata<'m>(&'m mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), value.parse())
        {
            self.0.insert(key, value);
        }
    }
}
