//! As much of protobuf's encoding as requests to containerd need.
//! <https://protobuf.dev/programming-guides/encoding/>

/// The fields of a protobuf message that are bytes, strings or messages, up to its end or the first error.
pub fn fields(message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = message;
    std::iter::from_fn(move || loop {
        let tag = take_number(&mut rest)?;
        match tag & 7 {
            0 => drop(take_number(&mut rest)?),
            1 => drop(take(&mut rest, 8)?),
            2 => {
                let length = take_number(&mut rest)?;
                return Some((tag >> 3, take(&mut rest, usize::try_from(length).ok()?)?));
            }
            5 => drop(take(&mut rest, 4)?),
            _ => return None,
        }
    })
}

pub fn field(message: &[u8], wanted: u64) -> Option<&[u8]> {
    fields(message).find(|(number, _)| *number == wanted).map(|(_, bytes)| bytes)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// Reads a varint: seven bits per byte, lowest first; the highest bit says that more bytes follow.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Encodes a field of bytes, a string or a message.
pub fn written(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut to = vec![];
    for mut number in [number << 3 | 2, bytes.len() as u64] {
        while number >= 0x80 {
            to.push(number as u8 | 0x80);
            number >>= 7;
        }
        to.push(number as u8);
    }
    to.extend(bytes);
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_far_as_it_is_whole() {
        let numbers = [vec![1 << 3, 0xff, 0x01], vec![2 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0], vec![3 << 3 | 5, 0, 0, 0, 0]].concat();
        let message = [numbers, written(20, &[7; 300])].concat();
        assert_eq!(fields(&message).collect::<Vec<_>>(), [(20, &[7; 300][..])]);
        for end in 0..message.len() {
            assert_eq!(fields(&message[..end]).count(), 0, "{end}");
        }
        assert_eq!(fields(&[0xff; 30]).count(), 0);
    }
}
