//! Every unsafe line of the init: waitpid(2), signals and descriptors as children find them, the address
//! ioctls of netdevice(7), the calendar, what happens between fork and exec. Each function is safe to call with any arguments.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

/// The first descriptor that socket activation hands over (sd_listen_fds(3), SD_LISTEN_FDS_START).
const LISTEN_FDS_START: RawFd = 3;

/// What `waitpid(-1, WNOHANG)` found.
pub enum Reaped {
    /// A child ended with this status. It is std's type because nix's cannot hold real-time signals.
    Child(i32, ExitStatus),
    /// There are children, but none has ended.
    Nothing,
    /// There are no children at all.
    NoChildren,
}

/// Collects one ended child, without waiting.
pub fn reap_one() -> Reaped {
    reap(-1)
}

/// Collects the child `pid` if it has ended; -1 stands for any child (waitpid(2)).
pub fn reap(pid: i32) -> Reaped {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for an int, and waitpid writes nothing else.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 => return Reaped::Nothing,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => continue,
            -1 => return Reaped::NoChildren,
            pid => return Reaped::Child(pid, ExitStatus::from_raw(status)),
        }
    }
}

/// Sends any signal, including real-time signals, which nix's type does not have.
pub fn send_signal(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory; a wrong one is an error.
    unsafe { libc::kill(pid, signal) };
}

/// Unblocks every signal and resets every ignored one, since children inherit both, and whoever started us may
/// have set either (nohup, a shell's `trap ''`). std itself resets SIGPIPE in each child.
pub fn unblock_and_unignore_signals() {
    // SAFETY: both structures are plain memory that lives through the calls, and all-zero bytes are a
    // valid value of either; a signal that may not be changed (SIGKILL, glibc's own) is an error only.
    unsafe {
        for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Takes a variable out of the environment, and its value out of the memory that /proc/PID/environ shows. Called
/// before any other thread is started.
pub fn forget_variable(name: &str) {
    let Ok(name) = std::ffi::CString::new(name) else { return };
    // SAFETY: nobody else reads or changes the environment meanwhile; getenv's value is a string that ends with a
    // zero byte in memory of this process that may be written, and is not used after unsetenv.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        if !value.is_null() {
            std::ptr::write_bytes(value, 0, libc::strlen(value));
        }
        libc::unsetenv(name.as_ptr());
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Seconds since 1970 as RFC 3339 has them, in UTC.
pub fn utc(seconds: u64) -> String {
    let seconds = libc::time_t::try_from(seconds).unwrap_or_default();
    // SAFETY: both are plain memory that lives through the call, and all-zero bytes are a valid `struct tm`.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&seconds, &mut tm);
        tm
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// Marks every descriptor that we inherited as close-on-exec, so that our children do not get it.
pub fn close_descriptors_on_exec() {
    // SAFETY: close_range only sets a flag of descriptors here, which changes nothing for their users.
    let done = unsafe { libc::syscall(libc::SYS_close_range, LISTEN_FDS_START, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return;
    }
    // Linux before 5.11.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for fd in open.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()).filter(|fd| *fd >= LISTEN_FDS_START) {
        // SAFETY: as above; a descriptor that is closed by now is an error only.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Gives interface `label` (such as `eth0:kind`) an address with the netmask /32, by ioctl.
pub fn set_interface_address(label: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let set = |request, address| {
        let mut ifreq = interface_request(label, address)?;
        // SAFETY: `ifreq` is a whole `struct ifreq` that lives through the call; both requests only read it.
        match unsafe { libc::ioctl(socket.as_raw_fd(), request, &mut ifreq) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    set(libc::SIOCSIFADDR, address)?;
    set(libc::SIOCSIFNETMASK, Ipv4Addr::BROADCAST)
}

fn interface_request(label: &str, address: Ipv4Addr) -> io::Result<libc::ifreq> {
    if label.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name {label} is too long for an ioctl")));
    }
    // SAFETY: all-zero bytes are a valid `struct ifreq`: an empty name and an empty union.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(label.bytes()) {
        *to = from as libc::c_char;
    }
    let sockaddr = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: sockaddr_in is as large as sockaddr, and the union's member is plain bytes of that size.
    ifreq.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(sockaddr) };
    Ok(ifreq)
}

/// Passes `socket` to the command's process as descriptor 3, open across exec.
///
/// The caller must keep the socket open until the command is spawned.
pub fn pass_listening_socket(command: &mut Command, socket: BorrowedFd) {
    let fd = socket.as_raw_fd();
    // SAFETY: between fork and exec only dup2 and fcntl are called, which are async-signal-safe,
    // and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            let result = if fd == LISTEN_FDS_START { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, LISTEN_FDS_START) };
            if result == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Puts the command's process into a process group of its own and, if stdin is a terminal, makes that the
/// terminal's foreground group: SIGTTIN stops any other group that reads from it.
pub fn run_in_foreground_group(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe functions are called, on values of this
    // frame, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            if libc::setpgid(0, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            if libc::isatty(0) == 1 {
                // SIGTTOU would stop a background process that calls tcsetpgrp.
                let mut ttou: libc::sigset_t = std::mem::zeroed();
                let mut before: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut ttou);
                libc::sigaddset(&mut ttou, libc::SIGTTOU);
                libc::sigprocmask(libc::SIG_BLOCK, &ttou, &mut before);
                libc::tcsetpgrp(0, libc::getpid());
                libc::sigprocmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            }
            Ok(())
        });
    }
}

/// Whether a file has an extended attribute. Does not follow symbolic links.
pub fn has_attribute(path: &std::path::Path, name: &std::ffi::CStr) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end with a zero byte, and a size of 0 asks for no data to be written.
    unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// Makes all threads share one heap: by default glibc gives each thread an arena, which keeps memory that the
/// thread once needed.
pub fn share_one_heap() {
    // SAFETY: mallopt only sets a number, and is called before any other thread allocates.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns unused memory of the heap to the kernel.
pub fn trim_heap() {
    // SAFETY: malloc_trim touches nothing but the allocator's own free lists, under its lock.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The scheduling policy of a thread, while it runs; 0 stands for this one (sched_getscheduler(2)).
pub fn scheduling_policy(thread: i32) -> Option<i32> {
    // SAFETY: the call takes a number and touches no memory. musl's function of that name only fails.
    match unsafe { libc::syscall(libc::SYS_sched_getscheduler, thread) } {
        -1 => None,
        policy => Some(policy as i32),
    }
}

/// Returns whether the thread has that policy now, which must be one without a priority of its own.
pub fn set_scheduling_policy(thread: i32, policy: i32) -> bool {
    // The only field that Linux has (`struct sched_param`).
    let priority: libc::c_int = 0;
    // SAFETY: the call reads `priority`, which lives longer. musl's function of that name only fails.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread, policy, &priority as *const libc::c_int) == 0 }
}

/// Opens a descriptor that stands for a process (pidfd_open(2), Linux 5.3).
pub fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers; the descriptor that it returns is new and nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}

/// Whether the process that a descriptor stands for has ended after this long: it can be read then.
pub fn ends_within(process: &OwnedFd, limit: Duration) -> bool {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
}

/// Sends a signal to the process that a descriptor stands for, if it has not ended (pidfd_send_signal(2)).
pub fn signal_descriptor(process: &OwnedFd, signal: i32) {
    // SAFETY: the descriptor is open, and no memory is passed.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0) };
}
