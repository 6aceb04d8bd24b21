//! End-to-end tests: they run the image under test with this machine's Docker engine.
//!
//! ```text
//! export KIND_TEST_SECRET=anything-unusual
//! KIND_HOOKS=tests/e2e/hooks KIND_IMAGES=tests/e2e/images.sh ./build.sh --env KIND_TEST_SECRET … IMAGE
//! KIND_IMAGE=IMAGE cargo test --test e2e -- --ignored --test-threads=1
//! ```
//!
//! `KIND_TEST_SECRET` must be the same for both. The image must contain `kind-lab/busybox:1`, which the tests' pods
//! run. Nothing depends on its version of Kubernetes: the tests take kubectl, the init and the list of baked pods
//! from it. `DEBIAN_IMAGE` and `DOCKER_IMAGE` are passed on to `build.sh`.
//!
//! `.ci/run` runs several processes of them at a time. A test that limits how long something may take, or changes what
//! all containers of a machine share, belongs in a module of its list `alone`.
//!
//! Where a restored and a cold start could differ, a test is run on both (`start`).
//!
//! Tests that change nothing share a cluster; the others start their own, and remove it. Even if the test process is
//! killed, everything that it has created is removed (`engine`).
#![allow(clippy::disallowed_methods, reason = "no reaper runs in this process, so std's own wait calls are safe")]

mod api;
mod bake;
mod baked;
mod certificate_names;
mod certificates;
mod clients;
mod cluster;
mod dind;
mod docker_first;
mod engine;
mod extensions;
mod failures;
mod following;
mod host_files;
mod image;
mod image_names;
mod interrupt;
mod keeping;
mod load_balancer;
mod logs;
mod namesake;
mod neighbours;
mod nested;
mod networks;
mod power;
mod private_registry;
mod process;
mod publish;
mod pull_policy;
mod readiness;
mod refusals;
mod registry;
mod release;
mod reset;
mod restart;
mod restore;
mod saving;
mod secrets;
#[allow(dead_code, reason = "only the tests of downloads use its faults")]
#[path = "../common/server.rs"]
mod server;
mod settings;
mod start;
mod storage;
mod store;
mod volumes;
mod watch;
mod workloads;
