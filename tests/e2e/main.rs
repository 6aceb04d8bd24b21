//! One real cluster, every promise: the image under test is run by the Docker engine of this machine.
//!
//! ```text
//! export KIND_TEST_SECRET=anything-unusual
//! KIND_HOOKS=tests/e2e/hooks KIND_IMAGES=tests/e2e/images.sh ./build.sh --env KIND_TEST_SECRET … IMAGE
//! KIND_IMAGE=IMAGE cargo test --test e2e -- --ignored --test-threads=1
//! ```
//!
//! `KIND_TEST_SECRET` must be the same for both. The image must hold `kind-lab/busybox:1`, which the
//! tests' pods run; nothing depends on its version of Kubernetes: kubectl, the init and the list of
//! baked pods are taken out of it. `DEBIAN_IMAGE` and `DOCKER_IMAGE` are handed on to `build.sh`.
//!
//! Tests that only look share one cluster; the others start their own, and remove it. Whatever
//! happens to the test process, everything that it made is removed (`engine`).
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod api;
mod bake;
mod baked;
mod certificates;
mod clients;
mod cluster;
mod dind;
mod engine;
mod extensions;
mod failures;
mod following;
mod image;
mod image_names;
mod interrupt;
mod load_balancer;
mod nested;
mod networks;
mod power;
mod private_registry;
mod process;
mod readiness;
mod refusals;
mod registry;
mod release;
mod restart;
mod secrets;
#[allow(dead_code, reason = "its failures are for the tests of downloads alone")]
#[path = "../common/server.rs"]
mod server;
mod store;
mod volumes;
mod watch;
mod workloads;
