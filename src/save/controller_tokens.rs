//! Tokens for the controllers that are saved, which must be valid in every start of the image.
//!
//! The controller-manager asks for a token for each controller that has something to do, valid for an hour, and renews it by its
//! own clock, which a restore lets go on from where it stopped. From an image that is older than that, the first request of each
//! would be refused, and events in the job's namespaces would say `Unauthorized`. So while the control plane is saved, a webhook
//! has every token signed for ten years.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::prelude::{Engine, BASE64_STANDARD};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::config::{PKI_DIR, POLL, REQUEST_LIMIT, RESTORED_DIR};
use crate::error::{Error, Result};
use crate::openssl::{self, Keys, HUNDRED_YEARS};
use crate::supervisor::reaper;
use crate::{files, http};

/// Twenty times that many nanoseconds must fit into 63 bits: the controller-manager subtracts 20 % of it
/// (k8s.io/controller-manager, client_builder_dynamic.go).
const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;
const NAME: &str = "tokens.kind.invalid";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
/// A token that is requested to see whether the webhook is called.
const PROBED: &str = "/api/v1/namespaces/kube-system/serviceaccounts/default/token";
/// How long the API server may take to call the webhook for the first time, the controllers to have their tokens, and the
/// webhook's configuration to be deleted.
const LIMIT: Duration = Duration::from_secs(15);

/// Does `work`, in which the controllers are started, and waits until none has asked for a token for as long as `quiet`.
///
/// # Errors
/// `work` has failed, or the webhook's configuration cannot be deleted, and would be saved. If there can be no webhook, there is
/// only a warning.
pub fn with_long_lived_tokens(api: &Api, quiet: Duration, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (is_over, answered) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    thread::scope(|scope| {
        // However this ends: the scope waits for the thread.
        let _over = Over(is_over);
        let begun = Webhook::listen().and_then(|webhook| {
            let configuration = webhook.configuration()?;
            let serve = move || webhook.serve(is_over, answered);
            let thread = thread::Builder::new().name("tokens".into()).spawn_scoped(scope, serve);
            thread.map_err(|cause| Error::new(format!("cannot start a thread: {cause}")))?;
            api.create(CONFIGURATIONS, &configuration)?;
            wait_until_it_is_called(api, answered)
        });
        if let Err(error) = &begun {
            log::warn!(
                target: "save",
                "the controllers' saved tokens are valid for an hour: in a later start, events will say Unauthorized once for each, which then tries again: {error}"
            );
            delete(api)?;
        }
        work()?;
        wait_until_quiet(answered, quiet);
        delete(api)
    })
}

/// Ends a webhook's thread when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn wait_until_it_is_called(api: &Api, answered: &AtomicUsize) -> Result<()> {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let mut last = Ok(());
    let is_called = || {
        last = api.create(PROBED, &request);
        (answered.load(Ordering::Relaxed) > 0).then_some(())
    };
    match (reaper::poll(POLL, LIMIT, is_called), last) {
        (Some(()), _) => Ok(()),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(Error::new(format!("the API server has called no webhook within {} s", LIMIT.as_secs()))),
    }
}

fn wait_until_quiet(answered: &AtomicUsize, quiet: Duration) {
    let mut last = (answered.load(Ordering::Relaxed), Instant::now());
    reaper::poll(POLL, LIMIT, || {
        let count = answered.load(Ordering::Relaxed);
        if count != last.0 {
            last = (count, Instant::now());
        }
        (last.1.elapsed() >= quiet).then_some(())
    });
}

fn delete(api: &Api) -> Result<()> {
    let mut deleted = Ok(());
    reaper::poll(POLL, LIMIT, || {
        deleted = api.delete(&format!("{CONFIGURATIONS}/{NAME}"));
        deleted.is_ok().then_some(())
    });
    deleted
}

struct Webhook {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
}

impl Webhook {
    fn listen() -> Result<Webhook> {
        let file = |name: &str| Path::new(RESTORED_DIR).join(name);
        let (key, certificate) = (file("webhook.key"), file("webhook.crt"));
        openssl::ensure_key(&key, Keys::EcdsaP256, 0o600)?;
        let (ca, ca_key) = (ca(), Path::new(PKI_DIR).join("ca.key"));
        let extensions = ["extendedKeyUsage=serverAuth", "subjectAltName=IP:127.0.0.1"];
        let request =
            openssl::Certificate { subject: "/CN=kind", key: &key, ca: Some((&ca, &ca_key)), days: HUNDRED_YEARS, extensions: &extensions };
        request.write(&certificate)?;
        let failed = |cause: &dyn std::fmt::Display| Error::new(format!("cannot serve a webhook: {cause}"));
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|cause| failed(&cause))?;
        let certificate = CertificateDer::from_pem_file(&certificate).map_err(|cause| failed(&cause))?;
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let tls = tls.and_then(|tls| tls.with_no_client_auth().with_single_cert(vec![certificate], key)).map_err(|cause| failed(&cause))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        Ok(Webhook { listener: listener.map_err(|cause| failed(&cause))?, tls: Arc::new(tls) })
    }

    fn configuration(&self) -> Result<Value> {
        let address = self.listener.local_addr().map_err(|cause| Error::new(format!("the webhook has no address: {cause}")))?;
        let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["serviceaccounts/token"]});
        let webhook = json!({
            "name": NAME,
            "clientConfig": {"url": format!("https://{address}/"), "caBundle": BASE64_STANDARD.encode(files::read(ca())?)},
            "rules": [rule],
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Ignore",
            "timeoutSeconds": 5,
        });
        Ok(json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": NAME},
            "webhooks": [webhook],
        }))
    }

    fn serve(&self, is_over: &AtomicBool, answered: &AtomicUsize) {
        let answer = |client| match self.answer(client) {
            Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
            Err(cause) => log::debug!(target: "save", "a webhook's request was not answered: {cause}"),
        };
        // One that sends nothing keeps no other waiting.
        thread::scope(|clients| {
            while !is_over.load(Ordering::Relaxed) {
                let begun =
                    self.listener.accept().and_then(|(client, _)| thread::Builder::new().spawn_scoped(clients, move || answer(client)));
                if begun.is_err() {
                    thread::sleep(POLL);
                }
            }
        });
    }

    fn answer(&self, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(REQUEST_LIMIT))?;
        client.set_write_timeout(Some(REQUEST_LIMIT))?;
        let mut client = StreamOwned::new(ServerConnection::new(self.tls.clone()).map_err(io::Error::other)?, client);
        let review = read_review(&mut client)?;
        log::debug!(target: "save", "a token for {}", review["request"]["name"]);
        let answer = admit(&review).to_string();
        let head = http::head("200 OK", &[("Content-Type", &"application/json"), ("Content-Length", &answer.len())]);
        client.write_all(&[&head, answer.as_bytes()].concat())?;
        client.conn.send_close_notify();
        client.flush()
    }
}

fn ca() -> PathBuf {
    Path::new(PKI_DIR).join("ca.crt")
}

/// Reads a request, whose body is JSON, to its end.
fn read_review(client: &mut impl Read) -> io::Result<Value> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&buffer[..length]);
        let announced = http::values(&request, "Content-Length").next().and_then(|length| length.parse().ok());
        let body = http::body(&request);
        if announced.is_some_and(|length: usize| length > 0 && body.len() >= length) {
            return serde_json::from_slice(body).map_err(io::Error::other);
        }
    }
}

/// Admits the request for a token that is in an AdmissionReview, with ten years in place of what it has asked for.
fn admit(review: &Value) -> Value {
    let patch = json!([{"op": "add", "path": "/spec/expirationSeconds", "value": TEN_YEARS}]).to_string();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(patch)},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_to_its_end_and_answered_with_its_uid() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.0.len().min(7);
                buffer[..length].copy_from_slice(&self.0[..length]);
                self.0 = &self.0[length..];
                Ok(length)
            }
        }
        let request = b"POST / HTTP/1.1\r\nContent-Length: 36\r\n\r\n{\"request\": {\"uid\": \"4711\", \"a\": {}}}";
        let review = read_review(&mut Slow(request)).unwrap();
        let answer = admit(&review);
        assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("4711"), &json!(true)));
        let patch = BASE64_STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        assert_eq!(patch[0]["value"], 315_360_000);
        assert!(read_review(&mut Slow(&request[..60])).is_err());
    }

    #[test]
    fn the_controller_manager_can_compute_with_so_long_a_time() {
        assert!((TEN_YEARS * 1_000_000_000).checked_mul(20).is_some_and(|product| product < i64::MAX as u64));
    }
}
