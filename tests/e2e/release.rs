//! Builds a bundle from download servers and registries (with checksums, and with a private image after `docker login`
//! in a hook), and then an image from the bundle without any of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bake::{bundle, bundled_version, minor_of, with_lab_images};
use crate::cluster::Cluster;
use crate::engine::{docker, docker_within, session, tools, BUSYBOX};
use crate::process::{run, run_with_input};
use crate::registry::{ca_certificate, Registry};
use crate::secrets;
use crate::server::Server;

/// For a download, two bakes and a commit on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);
const USER: &str = "e2e";

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_release_is_downloaded_bundled_and_baked_again_without_its_servers() {
    let dir = session().dir.join("release");
    let storage = dir.join("registry");
    let password = format!("pass-{}-word", std::process::id());
    let (public, private) = (Registry::plain(&storage), Registry::private(&storage, USER, &password));
    let version = bundled_version();
    let server = publish(&public, &version);
    public.push(BUSYBOX, "app:1");
    let (app, checkout) = (format!("{}/app:1", private.host), checkout(&dir, &version));
    // Users may edit the scripts next to build.sh.
    append(
        &checkout.join("before-cluster.sh"),
        &format!(
            "mkdir -p /etc/docker/certs.d/{host}\ncat >/etc/docker/certs.d/{host}/ca.crt <<'PEM'\n{}PEM\ndocker login -u {USER} -p {password} {host}\n",
            std::fs::read_to_string(ca_certificate()).expect("it was just created"),
            host = private.host
        ),
    );
    append(&checkout.join("images.sh"), &format!("docker pull {app}\n"));
    let build = |arguments: &[&str]| {
        let mut build = Command::new(checkout.join("build.sh"));
        with_lab_images(&mut build).args(arguments).current_dir("/").env("KIND_CACHE", dir.join("cache")).env("KIND_INIT", &tools().kind);
        let url = |part| format!("http://127.0.0.1:{}/{part}", server.port);
        build.env("KUBERNETES_VERSION", minor_of(&version)).env("KUBERNETES_URL", url("release"));
        build.env("CNI_URL", url("cni")).env("CNI_VERSION", "v1");
        run(build.env("IMAGE_REGISTRY", &public.host), LIMIT)
    };

    let bundle = dir.join("bundle");
    let made = build(&["--bundle-only", "--bundle", &bundle.to_string_lossy()]);
    let steps = ["downloading", "pulling the images of"].map(|step| format!("{step} Kubernetes {version}"));
    for words in [&steps[0], &steps[1], "saved ", &app, "the bundle is"] {
        assert!(made.succeeded() && made.output().contains(words), "{words} is not in: {made}");
    }
    let digests = std::fs::read_to_string(bundle.join("images/DIGESTS")).expect("the bundle names its images' digests");
    assert!(digests.lines().count() >= 6, "{digests}");
    for line in digests.lines() {
        let digest = line.split_once("@sha256:").map(|(name, digest)| (name.starts_with("registry.k8s.io/"), digest.len()));
        assert_eq!(digest, Some((true, 64)), "{line}");
    }
    assert!(secrets::holds(&bundle, &app), "the search does not even find the image's name in the bundle");
    assert_eq!(secrets::found_in(&bundle, USER, &password), Vec::<String>::new(), "the password is in the bundle");

    // From here on without the servers and the cache.
    drop((public, private, server));
    std::fs::remove_dir_all(dir.join("cache")).expect("it exists");
    let image = format!("kind-e2e-{}:release", std::process::id());
    let _image = Image(&image);
    let baked = run(
        with_lab_images(Command::new(checkout.join("build.sh")).arg("--bundle").arg(&bundle).arg(&image))
            .env("DEBIAN_IMAGE", "nobody/has:this"),
        LIMIT,
    );
    for words in [&format!("{app} is already present"), "docker login failed; continuing", "committed in"] {
        assert!(baked.succeeded() && baked.output().contains(words), "{words} is not in: {baked}");
    }
    let saved = dir.join("image.tar");
    docker_within(LIMIT, &["save", "--output", &saved.to_string_lossy(), &image]).ok();
    assert!(secrets::holds(&saved, &app), "the search does not even find the image's name in the saved image");
    assert_eq!(secrets::found_in(&saved, USER, &password), Vec::<String>::new(), "the password is in the image");
    std::fs::remove_file(&saved).expect("it exists");

    let cluster = Cluster::ready_of(&image);
    cluster.kubectl(&["run", "app", &format!("--image={app}"), "--restart=Never", "--image-pull-policy=IfNotPresent", "--", "true"]).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready=false", "--timeout=60s", "pod/app"]).ok();
    crate::process::wait_for("the pod of the private image has run", LIMIT, || {
        (cluster.field("pod/app", "{.status.phase}") == "Succeeded").then_some(())
    });
}

/// Removes the image when it is dropped.
struct Image<'a>(&'a str);

impl Drop for Image<'_> {
    fn drop(&mut self) {
        docker(&["image", "rm", "--force", self.0]);
    }
}

/// Publishes the bundle's contents as a release: programs on the server that it returns, images in the registry.
fn publish(registry: &Registry, version: &str) -> Server {
    let (server, bundle) = (Server::start(), bundle());
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    let arch = docker(&["version", "--format", "{{.Server.Arch}}"]).ok();
    for program in ["kubeadm", "kubelet", "kubectl"] {
        server.publish(&format!("/release/{version}/bin/linux/{arch}/{program}"), &read(&bundle.join("bin").join(program)));
    }
    let plugins = archive(&bundle.join("cni"), &["bridge", "host-local", "loopback", "portmap"]);
    server.publish(&format!("/release/stable-{}.txt", minor_of(version)), format!("{version}\n").as_bytes());
    server.publish(&format!("/cni/v1/cni-plugins-linux-{arch}-v1.tgz"), &read(&plugins));
    for entry in std::fs::read_dir(bundle.join("images")).expect("a bundle has images").flatten() {
        // Images that images.sh has pulled are not part of a release.
        if entry.file_name() == "pulled.tar" {
            continue;
        }
        let loaded = docker(&["load", "--quiet", "--input", &entry.path().to_string_lossy()]).ok();
        for image in loaded.lines().filter_map(|line| line.strip_prefix("Loaded image: ")) {
            if let Some(name) = image.strip_prefix("registry.k8s.io/") {
                registry.push(image, name);
                docker(&["image", "rm", image]).ok();
            }
        }
    }
    server
}

fn archive(directory: &Path, names: &[&str]) -> PathBuf {
    let path = session().dir.join(format!("{}.tgz", names[0]));
    run(Command::new("tar").arg("-C").arg(directory).arg("-czf").arg(&path).args(names), LIMIT).ok();
    path
}

/// A copy of this checkout in a directory of a pipeline, as if it were a submodule. It does not know the checksums of this
/// version: those are the official programs', and the bundle's may have been made from source.
fn checkout(dir: &Path, version: &str) -> PathBuf {
    let checkout = dir.join("pipeline/kind");
    std::fs::create_dir_all(&checkout).expect("the session's directory can be written");
    let copy = r#"cd "$1" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c | tar -x -C "$2""#;
    run_with_input(Command::new("sh").args(["-c", copy, "sh", env!("CARGO_MANIFEST_DIR")]).arg(&checkout), "", LIMIT).ok();
    let checksums = checkout.join("scripts/checksums");
    let known = std::fs::read_to_string(&checksums).expect("the checkout has checksums");
    let others: String = known.lines().filter(|line| !line.contains(&format!(" {version}/"))).map(|line| format!("{line}\n")).collect();
    std::fs::write(&checksums, others).expect("the checkout is ours");
    checkout
}

fn append(path: &Path, text: &str) {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    std::fs::write(path, before + text).expect("the checkout is ours");
}
