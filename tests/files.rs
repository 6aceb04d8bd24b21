//! The file server on port 10080: what it serves, and above all what it does not.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use common::dockerd::{Dockerd, Fault};
use common::node::{Container, Running, FILES_PORT};
use common::{parse_answer, raw, request, TempDir, LIMIT};
use nix::sys::stat::Mode;

const BROWSER_PORT: u16 = 10081;
const SECRET: &str = "not for everybody";

/// A file server with a `docker-ready`, and a secret beside, below and above what it may serve.
///
/// The container comes first, and so ends last.
fn serving() -> Option<(Container, Running)> {
    let container = Container::new()?;
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 404);
    kind.wait_for_line("starting Docker alone");
    container.root.write("var/kind/docker-ready", "ready\n");
    lay_secrets(&container.root);
    Some((container, kind))
}

fn lay_secrets(root: &TempDir) {
    for path in ["secret", "var/secret", "var/kind/secret", "var/kind/.docker-ready.new", "var/kind/below/secret"] {
        root.write(path, SECRET);
    }
    symlink(root.join("secret"), root.join("var/kind/failed")).unwrap();
    symlink("../secret", root.join("var/kind/ca.crt")).unwrap();
}

/// Targets that must not give anything away; each is sent as it is, not tidied by a client.
const TARGETS: [&str; 23] = [
    "/secret",
    "/failed",
    "/ca.crt",
    "/below/secret",
    "/.docker-ready.new",
    "/../secret",
    "/../../secret",
    "/docker-ready/../secret",
    "/docker-ready/../../secret",
    "/./secret",
    "//secret",
    "/%2e%2e/secret",
    "/..%2fsecret",
    "/%2e%2e%2fsecret",
    "/%252e%252e%252fsecret",
    "/..%5csecret",
    "/..\\secret",
    "/%73ecret",
    "/secret%00docker-ready",
    "/docker-ready%00",
    "/DOCKER-READY",
    "/docker-ready/",
    "../secret",
];

/// The targets that a server on this port answers with anything but an error, or with the secret.
fn leaks(port: u16) -> Vec<&'static str> {
    let leaks = |target: &&str| {
        let (status, body) = request(port, "GET", target).unwrap();
        !(400..500).contains(&status) || body.contains(SECRET)
    };
    TARGETS.into_iter().filter(leaks).collect()
}

#[test]
fn nothing_but_the_known_names_is_served() {
    let Some((container, _kind)) = serving() else { return };
    assert_eq!(container.get("docker-ready"), (200, "ready\n".into()));
    assert_eq!(leaks(FILES_PORT), [""; 0]);
}

/// The negative control of this file: a server that joins paths as they come gives the secrets away.
#[test]
fn a_careless_server_is_noticed() {
    let root = TempDir::new();
    lay_secrets(&root);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, dir) = (listener.local_addr().unwrap().port(), root.join("var/kind"));
    std::thread::spawn(move || listener.incoming().flatten().take(TARGETS.len()).for_each(|client| serve_carelessly(client, &dir)));
    let leaks = leaks(port);
    for target in ["/secret", "/../secret", "/../../secret", "/failed", "/ca.crt", "/below/secret", "/.docker-ready.new"] {
        assert!(leaks.contains(&target), "{target} is not among {leaks:?}");
    }
}

fn serve_carelessly(mut client: TcpStream, dir: &Path) {
    let mut request = [0; 1024];
    let read = client.read(&mut request).unwrap();
    let request = String::from_utf8_lossy(&request[..read]).into_owned();
    let target = request.split(' ').nth(1).unwrap_or_default();
    let answer = match std::fs::read_to_string(format!("{}/{target}", dir.display())) {
        Ok(text) => format!("HTTP/1.0 200 OK\r\n\r\n{text}"),
        Err(_) => "HTTP/1.0 404 Not Found\r\n\r\n".to_string(),
    };
    let _ = client.write_all(answer.as_bytes());
}

#[test]
fn a_state_is_true_exactly_while_its_file_is_there() {
    let Some((container, _kind)) = serving() else { return };
    assert_eq!(container.get("docker-ready?from=ci").0, 200);
    std::fs::remove_file(container.root.join("var/kind/docker-ready")).unwrap();
    assert_eq!(container.get("docker-ready").0, 404);
    container.root.write("var/kind/timeline", "0.500 store\n");
    assert_eq!(container.get("timeline"), (200, "0.500 store\n".into()));
}

#[test]
fn what_is_no_regular_file_is_not_served_and_blocks_nobody() {
    let Some((container, _kind)) = serving() else { return };
    std::fs::create_dir(container.root.join("var/kind/client.crt")).unwrap();
    nix::unistd::mkfifo(&container.root.join("var/kind/client.key"), Mode::S_IRWXU).unwrap();
    assert_eq!((container.get("client.crt").0, container.get("client.key").0), (404, 404));
}

/// Not a test: what the script `dockerd` of the tests below becomes.
#[test]
#[ignore = "the stand-in for dockerd, which the other tests start"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

#[test]
fn a_request_is_held_until_its_file_is_there() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Mute);
    let _kind = container.start(&["run"]);
    dockerd.wait_for_note("ping");
    let (asked, answered) = (Instant::now(), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let held = scope.spawn(|| {
            container.network.within(|| {
                let mut client = TcpStream::connect(("127.0.0.1", FILES_PORT)).unwrap();
                client.write_all(b"GET /docker-ready?wait=600 HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
                client.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
                assert!(client.read(&mut [0]).is_err(), "it is answered before there is anything to say");
                answered.wait();
                client.set_read_timeout(Some(LIMIT)).unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                parse_answer(&answer)
            })
        });
        answered.wait();
        // Nobody else waits for it.
        assert_eq!(container.get("docker-ready").0, 404);
        dockerd.mend(Fault::Mute);
        assert_eq!(held.join().unwrap(), (200, "ready\n".into()));
    });
    println!("held for {:.1} s", asked.elapsed().as_secs_f64());
    // What is there needs no time, and neither does what is no file or no time.
    for (target, status) in
        [("docker-ready?wait=600", 200), ("nothing?wait=600", 404), ("docker-ready?wait=601", 400), ("config?wait=x", 400)]
    {
        assert_eq!(container.get(target).0, status, "{target}");
    }
    let began = Instant::now();
    assert_eq!(container.get("kubernetes-ready?wait=1"), (404, "not yet\n".into()));
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_request_that_is_held_hears_of_a_failure_at_once() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container).tell(Fault::Dying);
    let _kind = container.start(&["run"]);
    let (status, why) = container.get("docker-ready?wait=600");
    assert!(status == 503 && why.contains("dockerd ended with status 3") && why == container.get("failed").1, "{status}: {why}");
    assert_eq!(container.get("docker-ready").0, 404, "who does not wait is answered as ever");
    assert_eq!(request(FILES_PORT, "HEAD", "/docker-ready?wait=5").unwrap(), (503, String::new()));
}

#[test]
fn only_get_and_head_are_allowed() {
    let Some((_container, _kind)) = serving() else { return };
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        for target in ["/docker-ready", "/no-such-file"] {
            let answer = raw(FILES_PORT, &format!("{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).unwrap();
            assert_eq!(parse_answer(&answer).0, 405, "{method} {target}: {answer}");
            assert!(answer.to_lowercase().contains("allow: get, head"), "{answer}");
        }
    }
}

#[test]
fn head_is_get_without_a_body() {
    let Some((_container, _kind)) = serving() else { return };
    for (target, status) in [("/docker-ready", 200), ("/kubernetes-ready", 404)] {
        assert_eq!(request(FILES_PORT, "HEAD", target).unwrap(), (status, String::new()), "{target}");
    }
    let answer = raw(FILES_PORT, "HEAD /docker-ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    assert!(answer.to_lowercase().contains("content-length: 6"), "{answer}");
}

#[test]
fn one_connection_serves_one_request_and_says_so() {
    let Some((_container, _kind)) = serving() else { return };
    let request = "GET /docker-ready HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n";
    let answer = raw(FILES_PORT, &request.repeat(2)).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\nConnection: close\r\n").count(), 1, "{answer}");
    assert_eq!(answer.matches("ready\n").count(), 1, "{answer}");
}

#[test]
fn clients_that_say_nothing_do_not_hold_up_the_others() {
    // Several times, since it is a race which of the first ones find a thread.
    for _ in 0..5 {
        let Some((_container, _kind)) = serving() else { return };
        let mut clients: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(("127.0.0.1", FILES_PORT)).unwrap()).collect();
        // Every second one stays silent.
        for client in clients.iter_mut().skip(1).step_by(2) {
            client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            client.write_all(b"GET /docker-ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            assert!(client.read_to_string(&mut answer).is_ok() && answer.contains("200 OK"), "a client waits behind silent ones");
        }
    }
}

#[test]
fn nonsense_does_not_end_the_server() {
    let Some((container, mut kind)) = serving() else { return };
    let long = "x".repeat(100_000);
    let headers = "X-Header: y\r\n".repeat(5_000);
    for nonsense in [
        "\x16\x03\x01\x02\x00\x01\x00".to_string(),
        "\r\n\r\n\r\n".to_string(),
        "GET\r\n\r\n".to_string(),
        "GET /docker-ready HTTP/9.9\r\n\r\n".to_string(),
        "GET /docker-ready HTTP/1.1\r\nno colon\r\n\r\n".to_string(),
        "POST /docker-ready HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_string(),
        "POST /docker-ready HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_string(),
        format!("GET /{long} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        format!("GET /docker-ready HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"),
    ] {
        let mut client = TcpStream::connect(("127.0.0.1", FILES_PORT)).unwrap();
        let _ = client.write_all(nonsense.as_bytes());
        let _ = client.shutdown(std::net::Shutdown::Write);
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
        assert_eq!(container.get("docker-ready").0, 200, "after {:?}", &nonsense[..nonsense.len().min(60)]);
    }
    assert!(kind.still_runs() && !kind.stderr().contains("internal error"), "{}", kind.stderr());
}

#[test]
fn the_kubeconfig_names_the_host_that_was_asked_for() {
    let Some((container, _kind)) = serving() else { return };
    container.root.write("var/kind/config", "clusters:\n- cluster:\n    server: https://localhost:8443\n");
    let config =
        |host: &str| parse_answer(&raw(FILES_PORT, &format!("GET /config HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).unwrap());
    let (status, text) = config("build-7.example:10080");
    assert_eq!(
        (status, text.contains("    server: https://build-7.example:8443\n    tls-server-name: localhost\n")),
        (200, true),
        "{text}"
    );
    for host in ["evil\"host", "a b", "user@host", "host/path", "-a"] {
        let (status, text) = config(host);
        assert!(status == 400 && !text.contains("server:"), "{host}: {status} {text}");
    }
}

#[test]
fn the_kubeconfig_has_the_name_that_was_asked_for() {
    let Some((container, _kind)) = serving() else { return };
    container.root.write("var/kind/config", "contexts:\n- name: kind\n");
    assert_eq!(container.get("config?name=staging"), (200, "contexts:\n- name: \"staging\"\n".into()));
    let (status, text) = container.get("config?name=a%20b");
    assert!(status == 400 && text.contains("name is 1 to 63"), "{status} {text}");
}

/// DNS rebinding: a page of evil.example, whose name resolves to this container once the page is there, asks under that name.
#[test]
fn a_strangers_page_learns_nothing_where_browsers_connect() {
    let Some((container, mut kind)) = serving() else { return };
    container.root.write("var/kind/client.key", SECRET);
    let ask = |port, target: &str, host: &str| {
        parse_answer(&raw(port, &format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n")).unwrap())
    };
    for target in ["/client.key", "/config", "/docker-ready?wait=1", "/logs.tar.gz", "/", "/nothing"] {
        for host in ["Host: evil.example:10081\r\n", "host:evil.example\r\n", "Host: localhost\r\nHost: evil.example\r\n"] {
            let (status, text) = ask(BROWSER_PORT, target, host);
            assert!(status == 403 && text.contains("evil.example") && !text.contains(SECRET), "{target} {host}: {status} {text}");
        }
    }
    // A reset, as the page would have it after it has read that it needs a header.
    let reset = "POST /reset HTTP/1.1\r\nHost: evil.example\r\nX-Kind: reset\r\nConnection: close\r\n\r\n";
    assert_eq!(parse_answer(&raw(BROWSER_PORT, reset).unwrap()).0, 403);
    // Who asks for this container gets an answer, and so does everybody where no browser connects.
    for host in ["Host: localhost:10081\r\n", "Host: 127.0.0.1\r\n", "Host: my-kind:10081\r\n", ""] {
        assert_eq!(ask(BROWSER_PORT, "/client.key", host), (200, SECRET.into()), "{host}");
    }
    assert_eq!(ask(FILES_PORT, "/client.key", "Host: evil.example\r\n"), (200, SECRET.into()));
    assert!(kind.still_runs());
}

#[test]
fn a_browser_gets_a_page_and_everybody_else_text() {
    let Some((_container, _kind)) = serving() else { return };
    for port in [FILES_PORT, BROWSER_PORT] {
        let ask = |method: &str, accept: &str| {
            let answer = raw(port, &format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{accept}Connection: close\r\n\r\n")).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\nVary: Accept\r\n"), "{answer}");
            answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_string(), body.to_string())).unwrap()
        };
        for accept in ["", "Accept: */*\r\n", "Accept: application/json\r\n"] {
            let (head, body) = ask("GET", accept);
            assert!(head.contains("Content-Type: text/plain"), "{accept}: {head}");
            assert!(body.starts_with("docker-ready ") && body.contains(" /config ") && !body.contains('<'), "{accept}: {body}");
        }
        let browser = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";
        let (head, body) = ask("GET", browser);
        assert!(head.contains("Content-Type: text/html; charset=utf-8") && body.starts_with("<!doctype html>"), "{head}\n{body}");
        let policy = head.lines().find_map(|line| line.strip_prefix("Content-Security-Policy: ")).unwrap();
        for directive in [
            "default-src 'none'".to_string(),
            "connect-src 'self'".into(),
            "frame-ancestors 'none'".into(),
            format!("style-src '{}'", hash_of(&body, "style")),
            format!("script-src '{}'", hash_of(&body, "script")),
        ] {
            assert!(policy.split("; ").any(|have| have == directive), "{directive} is not in {policy}");
        }
        assert_eq!(ask("HEAD", browser).1, "");
    }
}

/// What a policy names the text of an element by, from another program than kind.
fn hash_of(page: &str, element: &str) -> String {
    let text = page.split(&format!("<{element}>")).nth(1).and_then(|rest| rest.split(&format!("</{element}>")).next()).unwrap();
    let root = TempDir::new();
    let hash = format!("openssl dgst -sha256 -binary {} | openssl base64", root.write("text", text).display());
    let output = std::process::Command::new("sh").args(["-c", &hash]).output().unwrap();
    format!("sha256-{}", String::from_utf8(output.stdout).unwrap().trim())
}

#[test]
fn no_page_but_kinds_own_may_ask_for_a_reset() {
    let Some((_container, _kind)) = serving() else { return };
    // 409: it may, but here is no cluster.
    for (port, host, origin, status) in [
        (BROWSER_PORT, "localhost:10081", "Origin: http://localhost:10081\r\n", 409),
        (BROWSER_PORT, "localhost:10081", "", 409),
        (BROWSER_PORT, "localhost:10081", "Origin: http://evil.example\r\n", 403),
        (BROWSER_PORT, "localhost:10081", "Origin: http://localhost:8080\r\n", 403),
        (BROWSER_PORT, "evil.example:10081", "Origin: http://evil.example:10081\r\n", 403),
        // Where no browser connects, unless it is published as another port.
        (FILES_PORT, "evil.example:18080", "Origin: http://evil.example:18080\r\n", 403),
        (FILES_PORT, "localhost:18080", "Origin: http://localhost:18080\r\n", 409),
        (FILES_PORT, "evil.example", "", 409),
    ] {
        let request = format!("POST /reset HTTP/1.1\r\nHost: {host}\r\nX-Kind: reset\r\n{origin}Connection: close\r\n\r\n");
        let (answered, text) = parse_answer(&raw(port, &request).unwrap());
        assert_eq!(answered, status, "{port} {host} {origin}: {text}");
    }
}

/// It is an addition that a job may not even know of; what a job asked for is not.
#[test]
fn a_taken_browsers_port_is_a_warning_unless_it_was_asked_for() {
    let Some(mut container) = Container::new() else { return };
    let _taken = TcpListener::bind(("127.0.0.1", BROWSER_PORT)).unwrap();
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 404);
    kind.wait_for_line("the file server cannot listen on [::]:10081");
    drop(kind);
    container.set("KIND_LISTEN", "127.0.0.1:10080,127.0.0.1:10081");
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1, "{}", kind.stderr());
}

/// Whoever shares the network namespace, such as a pod with `hostNetwork`, would get past the limits for clients.
#[test]
fn the_inner_socket_has_no_name() {
    let Some((_container, kind)) = serving() else { return };
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/unix", kind.pid())).unwrap();
    let names: Vec<&str> = sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7)).collect();
    let inner: Vec<&&str> = names.iter().filter(|name| name.contains("files")).collect();
    assert!(!inner.is_empty(), "it is there: {names:?}");
    for name in inner {
        assert!(name.starts_with('/') && !Path::new(name).exists(), "{name} can be found");
    }
}

#[test]
fn a_taken_port_is_one_clear_error() {
    let Some(container) = Container::new() else { return };
    let _taken = TcpListener::bind(("127.0.0.1", FILES_PORT)).unwrap();
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    let said = kind.stderr();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("10080") && said.contains("KIND_LISTEN="), "{said}");
}

#[test]
fn it_listens_where_it_is_told() {
    let Some(mut container) = Container::new() else { return };
    container.set("KIND_LISTEN", "127.0.0.1:18080");
    let _kind = container.start(&["run"]);
    common::wait_for("port 18080 answers", LIMIT, || request(18080, "GET", "/docker-ready").ok());
    assert!(container.get_now("docker-ready").is_none(), "and nowhere else");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_one_clear_error() {
    let Some(container) = Container::new() else { return };
    // A file in its place stops root too, which permissions do not.
    container.root.write("var/kind", "");
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    let said = kind.stderr();
    assert!(said.lines().count() == 1 && said.contains("var/kind"), "{said}");
}
