//! The command line.

use crate::bake::Bake;
use crate::config::{AWAIT_KUBE_PROXY, EXEC_WITH_SOCKET, PARENT, STAND_IN};
use crate::daemons::settings::CommandLine;
use crate::error::{Error, Result};
use crate::readiness::Operation;
use crate::status::Service;

pub const HELP: &str = "\
kind: the init of a container with Docker and a whole Kubernetes cluster

Usage:
  kind run [DOCKERD-FLAG...]    start Docker and the cluster baked into the image, if there is one
  kind run dockerd [FLAG...]    the same, but dockerd listens only where its flags say
  kind run COMMAND [ARG...]     run another command instead; `run ps` is `docker ps`, as in docker:dind
  kind bake --bundle DIR        bake a cluster into the image (build.sh calls this)
  kind status [--output json]   show the progress of the boot, and what is not ready
  kind healthcheck [docker|kubernetes]
                                exit with status 0 if ready, 1 if not; by default kubernetes, if baked in
  kind logs >logs.tar.gz        collect what explains this node: its logs, states, events and versions
  kind reset [--baked]          begin again with the cluster as it was saved, or baked; Docker is left alone
  kind save [--stop]            save the cluster: resets and restarts return to it as it is now; with
                                --stop, also stop the container, ready for docker commit
  kind get|load|create|delete|export ...
                                what makefiles call for kubernetes-sigs/kind, for the cluster that there is
  kind --help, kind --version

Port 10080, and for browsers 10081, serve docker-ready, kubernetes-ready, config, ca.crt,
client.crt and client.key as soon as each is true. failed says why a boot gave up, timeline how
long its steps took, waiting which pods are not ready and why, and status.json all of it. With
?wait=SECONDS an answer waits for its file. logs.tar.gz is what `kind logs` collects.
A browser gets a page of all this at http://HOST:10081/.

Before it serves kubernetes-ready, kind loads /kind/images/*.tar, applies /kind/manifests/*.yaml,
waits until they are ready, and runs /kubernetes-ready.sh and /kubernetes-ready.d/*.sh.

Environment:
  STATIC_IP      the node's address, fixed when the image is baked (default 172.99.99.1)
  DOCKER_TLS_CERTDIR, DOCKER_TLS_SAN, DOCKER_IPTABLES_LEGACY  as in docker:dind
  KIND_LISTEN    where the file server listens (default [::]:10080,[::]:10081)
  KIND_LOG       error, warn, info or debug (default info)
  KIND_READY_TIMEOUT  seconds after which a cluster that is not ready has failed (default 300)
  KIND_API_PORT  the port in /config, when 8443 is published as another one
  KIND_KUBELET_ARGS, KIND_DOCKERD_ARGS
                 more arguments for the daemons, separated by spaces
  KIND_ENFORCE_CAPACITY  1: the node is as large as the container's own limits
  KIND_SYSCTLS   0: leave the machine's kernel settings alone
  KIND_LOAD_BALANCER  0: give Services of type LoadBalancer no address
  KIND_RESTORE   0: start the control plane instead of restoring it
  KIND_REGISTRY, KIND_REGISTRY_USER, KIND_REGISTRY_PASSWORD or KIND_REGISTRY_PASSWORD_FILE
                 a registry to be logged in to, for docker in here and for pods
  KIND_REGISTRY_CA, KIND_REGISTRY_MIRROR
                 the CA of that registry or mirror (PEM, or a path), and a mirror of Docker Hub
";

#[derive(Debug, PartialEq)]
pub enum Invocation {
    Run(Run),
    Bake(Bake),
    Status(Output),
    Healthcheck(Option<Service>),
    Ask(Operation),
    Logs,
    /// A command line of the other kind's.
    Namesake(Vec<String>),
    ExecWithSocket(Vec<String>),
    /// The program's name and arguments.
    StandIn(String, Vec<String>),
    /// What to start, in JSON.
    Parent(String),
    AwaitKubeProxy,
    Help,
    Version,
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Text,
    Json,
}

/// The arguments after `run`, with the meaning that docker:dind's entrypoint gives them.
#[derive(Debug, PartialEq)]
pub enum Run {
    /// The daemons, with flags for dockerd.
    Docker(CommandLine),
    Command(Vec<String>),
}

/// With which `docker run IMAGE` asks for no node.
const HELP_FLAGS: [&str; 4] = ["-h", "--help", "-v", "--version"];
const VERSION_FLAGS: [&str; 2] = ["-v", "--version"];

pub fn parse(arguments: &[String]) -> Result<Invocation> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let usage = |what: String| Error::new(what).advise("`kind --help` lists the subcommands");
    match words.as_slice() {
        [] => Err(usage("missing subcommand".into())),
        ["-h" | "--help" | "help"] => Ok(Invocation::Help),
        ["-V" | "--version" | "version"] => Ok(Invocation::Version),
        ["bake" | "status" | "healthcheck" | "reset" | "save" | "logs", .., "-h" | "--help"] => Ok(Invocation::Help),
        ["run", ..] => Ok(match parse_run(&arguments[1..]) {
            // dockerd would print something, and end.
            Run::Docker(line) if line.flags.iter().any(|flag| HELP_FLAGS.contains(&flag.as_str())) => match line {
                CommandLine { flags, explicit: true } => Invocation::Run(Run::Command([vec!["dockerd".into()], flags].concat())),
                CommandLine { flags, .. } if flags.iter().any(|flag| VERSION_FLAGS.contains(&flag.as_str())) => Invocation::Version,
                CommandLine { .. } => Invocation::Help,
            },
            run => Invocation::Run(run),
        }),
        ["bake", "--bundle", bundle] => Ok(Invocation::Bake(Bake { bundle: bundle.into(), save_images: None })),
        ["bake", "--bundle", bundle, "--save-images", file] => {
            Ok(Invocation::Bake(Bake { bundle: bundle.into(), save_images: Some(file.into()) }))
        }
        ["bake", ..] => Err(usage("bake needs --bundle DIR, optionally followed by --save-images FILE".into())),
        ["status"] => Ok(Invocation::Status(Output::Text)),
        ["status", "-o" | "--output", "json"] | ["status", "--output=json"] => Ok(Invocation::Status(Output::Json)),
        ["status", ..] => Err(usage("status takes no arguments but --output json".into())),
        ["healthcheck"] => Ok(Invocation::Healthcheck(None)),
        ["healthcheck", "docker"] => Ok(Invocation::Healthcheck(Some(Service::Docker))),
        ["healthcheck", "kubernetes"] => Ok(Invocation::Healthcheck(Some(Service::Kubernetes))),
        ["healthcheck", ..] => Err(usage("healthcheck takes docker, kubernetes or no argument".into())),
        ["reset"] => Ok(Invocation::Ask(Operation::Reset)),
        ["reset", "--baked"] => Ok(Invocation::Ask(Operation::ResetToBaked)),
        ["reset", ..] => Err(usage("reset takes no arguments but --baked".into())),
        ["save"] => Ok(Invocation::Ask(Operation::Save)),
        ["save", "--stop"] => Ok(Invocation::Ask(Operation::SaveAndStop)),
        ["save", ..] => Err(usage("save takes no arguments but --stop".into())),
        ["logs"] => Ok(Invocation::Logs),
        ["get" | "load" | "create" | "delete" | "export", ..] => Ok(Invocation::Namesake(arguments.to_vec())),
        [EXEC_WITH_SOCKET, ..] => Ok(Invocation::ExecWithSocket(arguments[1..].to_vec())),
        [STAND_IN, name, ..] => Ok(Invocation::StandIn(name.to_string(), arguments[2..].to_vec())),
        [AWAIT_KUBE_PROXY] => Ok(Invocation::AwaitKubeProxy),
        [PARENT, programs] => Ok(Invocation::Parent(programs.to_string())),
        ["logs", ..] => Err(usage("logs takes no arguments".into())),
        [word, ..] => Err(usage(format!("unknown subcommand {word}"))),
    }
}

fn parse_run(arguments: &[String]) -> Run {
    match arguments.first().map(String::as_str) {
        // dind's entrypoint, as a command: here it is `kind run` (Dockerfile).
        Some("dockerd-entrypoint.sh") => parse_run(&arguments[1..]),
        Some("dockerd") => Run::Docker(CommandLine { flags: arguments[1..].to_vec(), explicit: true }),
        Some(word) if !word.starts_with('-') => Run::Command(arguments.to_vec()),
        _ => Run::Docker(CommandLine { flags: arguments.to_vec(), explicit: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation> {
        parse(&words(line))
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn arguments_of_run_mean_what_they_mean_to_dinds_entrypoint() {
        let docker = |line, explicit| Run::Docker(CommandLine { flags: words(line), explicit });
        for (line, run) in [
            ("run", docker("", false)),
            ("run --debug --mtu 1400", docker("--debug --mtu 1400", false)),
            ("run dockerd", docker("", true)),
            ("run dockerd --debug", docker("--debug", true)),
            ("run dockerd-entrypoint.sh", docker("", false)),
            ("run dockerd-entrypoint.sh dockerd --debug", docker("--debug", true)),
            ("run dockerd --help", Run::Command(words("dockerd --help"))),
            ("run dockerd --version", Run::Command(words("dockerd --version"))),
            ("run sh -c ls", Run::Command(words("sh -c ls"))),
            // After `run`, the name of one of our subcommands is a command like any other.
            ("run status", Run::Command(words("status"))),
        ] {
            assert_eq!(parsed(line).unwrap(), Invocation::Run(run), "{line}");
        }
    }

    #[test]
    fn usage_errors_point_to_the_help() {
        for line in [
            "",
            "start",
            "bake",
            "bake --bundle",
            "bake --bundle /b --save-images",
            "healthcheck cluster",
            "status now",
            "status --output yaml",
            "--verbose",
        ] {
            assert!(parsed(line).unwrap_err().to_string().contains("kind --help"), "{line}");
        }
    }

    #[test]
    fn each_subcommand_is_parsed() {
        assert_eq!(parsed("--help").unwrap(), Invocation::Help);
        assert_eq!(parsed("--version").unwrap(), Invocation::Version);
        for line in
            ["run --help", "run --debug -h", "run dockerd-entrypoint.sh --help", "reset --help", "save -h", "status --output --help"]
        {
            assert_eq!(parsed(line).unwrap(), Invocation::Help, "{line}");
        }
        for line in ["run --version", "run -v"] {
            assert_eq!(parsed(line).unwrap(), Invocation::Version, "{line}");
        }
        assert_eq!(parsed("get --help").unwrap(), Invocation::Namesake(words("get --help")));
        assert_eq!(parsed("bake --bundle /b").unwrap(), Invocation::Bake(Bake { bundle: "/b".into(), save_images: None }));
        for (line, service) in
            [("healthcheck", None), ("healthcheck docker", Some(Service::Docker)), ("healthcheck kubernetes", Some(Service::Kubernetes))]
        {
            assert_eq!(parsed(line).unwrap(), Invocation::Healthcheck(service), "{line}");
        }
        assert_eq!(parsed("load docker-image a").unwrap(), Invocation::Namesake(words("load docker-image a")));
        assert_eq!(parsed("status").unwrap(), Invocation::Status(Output::Text));
        for line in ["status --output json", "status --output=json", "status -o json"] {
            assert_eq!(parsed(line).unwrap(), Invocation::Status(Output::Json), "{line}");
        }
    }
}
