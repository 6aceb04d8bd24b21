//! `kind run ps` runs `docker ps`, and clients find their daemon, as in docker:dind (docker-entrypoint.sh).

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use crate::config::{DOCKER_PORT, DOCKER_SOCKET, DOCKER_TLS_PORT};
use crate::daemons::client_variables::{CERT_PATH, HOST, TLS_VERIFY};
use crate::daemons::tls;
use crate::supervisor::reaper;

/// The command to run, and the variables to add to its environment.
pub fn complete(argv: Vec<String>) -> (Vec<String>, Vec<(&'static str, String)>) {
    let is_subcommand = |word: &str| reaper::succeeds(Command::new("docker").args(["help", word]));
    let is_socket = Path::new(DOCKER_SOCKET).metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
    let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let client = get(tls::DIRECTORY).map(|directory| format!("{directory}/client"));
    let client = client.filter(|directory| ["ca.pem", "cert.pem", "key.pem"].iter().all(|name| Path::new(directory).join(name).exists()));
    (with_docker(argv, is_subcommand), environment(get, is_socket, client))
}

fn with_docker(mut argv: Vec<String>, is_subcommand: impl Fn(&str) -> bool) -> Vec<String> {
    if argv.first().is_some_and(|word| !word.contains('/') && is_subcommand(word)) {
        argv.insert(0, "docker".into());
    }
    argv
}

/// `client` is the directory with a client's certificates, if there are any.
fn environment(get: impl Fn(&str) -> Option<String>, is_socket: bool, client: Option<String>) -> Vec<(&'static str, String)> {
    let mut added = Vec::new();
    let host = get(HOST).unwrap_or_else(|| {
        let host = match (is_socket, client.is_some() || get(TLS_VERIFY).is_some()) {
            (true, _) => format!("unix://{DOCKER_SOCKET}"),
            (false, true) => format!("tcp://docker:{DOCKER_TLS_PORT}"),
            (false, false) => format!("tcp://docker:{DOCKER_PORT}"),
        };
        added.push((HOST, host.clone()));
        host
    });
    let is_free = |name| get(name).is_none();
    if let Some(directory) = client.filter(|_| host.starts_with("tcp:") && is_free(TLS_VERIFY) && is_free(CERT_PATH)) {
        added.extend([(TLS_VERIFY, "1".to_string()), (CERT_PATH, directory)]);
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_words_are_dockers() {
        let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        let is_subcommand = |word: &str| ["ps", "/bin/ps"].contains(&word);
        for (line, expected) in [("ps -a", "docker ps -a"), ("sh -c ls", "sh -c ls"), ("/bin/ps", "/bin/ps"), ("docker ps", "docker ps")] {
            assert_eq!(with_docker(words(line), is_subcommand), words(expected));
        }
    }

    #[test]
    fn a_client_finds_its_daemon() {
        let certificates = Some("/certs/client".to_string());
        let tls = |host: &str| {
            vec![("DOCKER_HOST", host.to_string()), ("DOCKER_TLS_VERIFY", "1".into()), ("DOCKER_CERT_PATH", "/certs/client".into())]
        };
        for (set, is_socket, client, expected) in [
            (vec![], true, None, vec![("DOCKER_HOST", "unix:///var/run/docker.sock".to_string())]),
            (vec![], true, certificates.clone(), vec![("DOCKER_HOST", "unix:///var/run/docker.sock".to_string())]),
            (vec![], false, None, vec![("DOCKER_HOST", "tcp://docker:2375".to_string())]),
            (vec![], false, certificates.clone(), tls("tcp://docker:2376")),
            (vec![("DOCKER_HOST", "tcp://x:1")], true, certificates.clone(), tls("")[1..].to_vec()),
            (vec![("DOCKER_HOST", "tcp://x:1"), ("DOCKER_CERT_PATH", "/mine")], true, certificates, vec![]),
            (vec![("DOCKER_TLS_VERIFY", "1")], false, None, vec![("DOCKER_HOST", "tcp://docker:2376".to_string())]),
        ] {
            let get = |name: &str| set.iter().find(|(have, _)| *have == name).map(|(_, value)| value.to_string());
            assert_eq!(environment(get, is_socket, client.clone()), expected, "{set:?} {is_socket} {client:?}");
        }
    }
}
