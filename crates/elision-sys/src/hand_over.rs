//! Hands a descriptor to another process, where a filter refuses `pidfd_getfd`.
//!
//! The receiver [listens](Listener::new) at a socket; its address is the kernel's choice and no path. A child of the sender, with a
//! descriptor table of its own, sends the descriptor: so the program's table has no socket at any moment. Both sides ask the kernel who
//! the other is.
#![allow(unsafe_code)] // A process on a stack of its own, and pointers to locals.

use crate::file::{close, close_below, unshare_and_close_from};
use crate::raw::{Errno, Result, syscall};
use crate::{PAGE, arch, memory, task};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::*};

/// A socket's address: what the kernel gives to one that is bound to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address([u8; 5]);

/// As bytes of `sockaddr_un`: the family, a zero, and the name.
const ADDRESS: usize = 8;

impl Address {
    fn bytes(self) -> [u8; ADDRESS] {
        let [low, high] = (libc::AF_UNIX as u16).to_ne_bytes();
        let [a, b, c, d, e] = self.0;
        [low, high, 0, a, b, c, d, e]
    }
}

/// A socket that takes one descriptor.
pub struct Listener {
    socket: i32,
    pub address: Address,
}

impl Listener {
    pub fn new() -> Result<Listener> {
        let socket = socket()?;
        listen(socket).map(|address| Listener { socket, address }).inspect_err(|_| close(socket))
    }

    pub fn close(self) {
        close(self.socket);
    }

    /// What process `sender` has sent. Never waits.
    pub fn take(self, sender: i32) -> Result<i32> {
        let taken = loop {
            let arguments = [self.socket as usize, 0, 0, (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as usize];
            let [socket, address, len, flags] = arguments;
            // SAFETY: no address is wanted.
            let peer = match unsafe { syscall(libc::SYS_accept4, [socket, address, len, flags, 0, 0]) } {
                Ok(peer) => peer as i32,
                Err(errno) => break Err(errno),
            };
            let taken = if peer_of(peer) == Ok(sender) { Some(receive(peer)) } else { None };
            close(peer);
            if let Some(taken) = taken {
                break taken;
            }
        };
        self.close();
        taken
    }
}

fn socket() -> Result<i32> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    Ok(unsafe { syscall(libc::SYS_socket, [libc::AF_UNIX as usize, kind as usize, 0, 0, 0, 0])? } as i32)
}

fn listen(socket: i32) -> Result<Address> {
    const BACKLOG: usize = 8;
    let mut bytes = Address([0; 5]).bytes();
    let mut len = ADDRESS as u32;
    let (at, len_at, number) = (bytes.as_mut_ptr() as usize, (&raw mut len) as usize, socket as usize);
    // SAFETY: pointers to locals.
    unsafe {
        // Without a name: the kernel chooses one.
        syscall(libc::SYS_bind, [number, at, size_of::<u16>(), 0, 0, 0])?;
        syscall(libc::SYS_listen, [number, BACKLOG, 0, 0, 0, 0])?;
        syscall(libc::SYS_getsockname, [number, at, len_at, 0, 0, 0])?;
    }
    match bytes {
        [_, _, 0, a, b, c, d, e] if len as usize == ADDRESS => Ok(Address([a, b, c, d, e])),
        _ => Err(Errno(libc::EAFNOSUPPORT)),
    }
}

/// Who made the other end.
fn peer_of(socket: i32) -> Result<i32> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of_val(&who) as u32;
    let (level, option) = (libc::SOL_SOCKET as usize, libc::SO_PEERCRED as usize);
    let (at, len) = ((&raw mut who) as usize, (&raw mut len) as usize);
    // SAFETY: the kernel fills locals.
    unsafe { syscall(libc::SYS_getsockopt, [socket as usize, level, option, at, len, 0])? };
    Ok(who.pid)
}

/// A control message with one descriptor.
#[repr(C)]
struct Carrier {
    head: libc::cmsghdr,
    fd: i32,
    _padding: i32,
}

impl Carrier {
    const LEN: usize = size_of::<libc::cmsghdr>() + size_of::<i32>();

    fn of(fd: i32) -> Carrier {
        let (cmsg_level, cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        Carrier { head: libc::cmsghdr { cmsg_len: Carrier::LEN, cmsg_level, cmsg_type }, fd, _padding: 0 }
    }
}

/// Sends or receives one byte with a control message.
fn transfer(number: i64, socket: i32, carrier: &mut Carrier, flags: i32) -> Result<()> {
    let mut byte = [0u8; 1];
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: integers and pointers, of which null is one.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut data, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut *carrier).cast(), size_of::<Carrier>());
    // SAFETY: all of it is on this stack.
    unsafe {
        syscall(number, [socket as usize, (&raw mut message) as usize, flags as usize, 0, 0, 0]).map(drop)
    }
}

fn receive(socket: i32) -> Result<i32> {
    let mut carrier = Carrier::of(-1);
    carrier.head.cmsg_len = 0;
    transfer(libc::SYS_recvmsg, socket, &mut carrier, libc::MSG_CMSG_CLOEXEC)?;
    let head = carrier.head;
    let is_one = (head.cmsg_len, head.cmsg_level, head.cmsg_type)
        == (Carrier::LEN, libc::SOL_SOCKET, libc::SCM_RIGHTS);
    if is_one { Ok(carrier.fd) } else { Err(Errno(libc::EBADMSG)) }
}

/// What the child is to do, behind what the ABI wants at a thread's pointer.
struct Errand {
    fd: i32,
    to: Address,
    receiver: i32,
    /// 0: not done; −1: done.
    outcome: AtomicI32,
}

const STACK: usize = 4 * PAGE;
const POINTERS: usize = 64;

/// Sends `fd` to process `receiver`, and tells who did. The calling thread waits for some system calls, which wait for nobody.
/// Signals must be blocked.
pub fn hand_over(fd: i32, to: Address, receiver: i32) -> Result<i32> {
    let room = memory::allocate(STACK + PAGE, false)?;
    let pointer = room + STACK;
    let errand = (pointer + POINTERS) as *mut Errand;
    let word = AtomicU32::new(0);
    // The table is shared until the child has one of its own: a copy of all would keep open what other threads close.
    let flags =
        libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_SETTLS | libc::CLONE_UNTRACED;
    // SAFETY: the stack and the page at the pointer are this call's. The child makes system calls only, and is gone or dying when
    // clone returns.
    let (child, outcome) = unsafe {
        errand.write(Errand { fd, to, receiver, outcome: AtomicI32::new(0) });
        let child = arch::clone(flags as usize, room + STACK, pointer, word.as_ptr(), run_errand);
        (child, (*errand).outcome.load(Acquire))
    };
    if child > 0 {
        task::wait_clone(child as i32);
    }
    // SAFETY: nobody uses it any more.
    unsafe { memory::unmap(room, STACK + PAGE) };
    match (child, outcome) {
        (1.., -1) => Ok(child as i32),
        (1.., errno) => Err(Errno(if errno > 0 { errno } else { libc::ECHILD })),
        _ => Err(Errno(-child as i32)),
    }
}

extern "C" fn run_errand() -> ! {
    // SAFETY: `hand_over` has put it there, and waits.
    let errand = unsafe { &*((arch::thread_pointer() + POINTERS) as *const Errand) };
    let outcome = match deliver(errand) {
        Ok(()) => -1,
        Err(Errno(errno)) => errno,
    };
    errand.outcome.store(outcome, Release);
    task::exit()
}

/// In a child: from the second line on, with a table of its own.
fn deliver(errand: &Errand) -> Result<()> {
    unshare_and_close_from(errand.fd.saturating_add(1))?;
    close_below(errand.fd)?;
    let socket = socket()?;
    let bytes = errand.to.bytes();
    // SAFETY: a pointer to a local.
    unsafe {
        syscall(libc::SYS_connect, [socket as usize, bytes.as_ptr() as usize, ADDRESS, 0, 0, 0])?;
    }
    // The address may have become somebody else's.
    if peer_of(socket)? != errand.receiver {
        return Err(Errno(libc::EACCES));
    }
    transfer(libc::SYS_sendmsg, socket, &mut Carrier::of(errand.fd), libc::MSG_NOSIGNAL)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::{AsRawFd, FromRawFd};

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn the_description_arrives_and_nothing_else_changes() {
        let mut file = tempfile::tempfile().unwrap();
        let before = descriptors();
        let listener = Listener::new().unwrap();
        let mask = task::block_signals();
        let sender = hand_over(file.as_raw_fd(), listener.address, task::pid());
        task::restore_signals(mask);
        let got = listener.take(sender.unwrap()).unwrap();
        // SAFETY: just received.
        let mut got = unsafe { File::from_raw_fd(got) };
        got.write_all(b"same position").unwrap();
        assert_eq!(file.stream_position().unwrap(), 13);
        file.rewind().unwrap();
        let mut text = String::new();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "same position");
        drop(got);
        assert_eq!(descriptors(), before);
    }

    #[test]
    fn only_the_receiver_gets_it_and_only_from_the_sender() {
        let file = tempfile::tempfile().unwrap();
        let before = descriptors();
        let listener = Listener::new().unwrap();
        let other = hand_over(file.as_raw_fd(), listener.address, task::pid() + 1);
        assert_eq!(other, Err(Errno(libc::EACCES)));
        assert!(hand_over(file.as_raw_fd(), listener.address, task::pid()).unwrap() > 0);
        assert_eq!(listener.take(task::pid()), Err(Errno(libc::EAGAIN)));
        let gone = Listener::new().unwrap();
        let address = gone.address;
        gone.close();
        assert_eq!(hand_over(file.as_raw_fd(), address, task::pid()), Err(Errno(libc::ECONNREFUSED)));
        assert_eq!(hand_over(1 << 20, address, task::pid()).map(drop), Err(Errno(libc::ECONNREFUSED)));
        assert_eq!(descriptors(), before);
    }
}
