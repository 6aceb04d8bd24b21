//! Overwrites the free pages of a bbolt database. In containerd's, they still contain the environment of containers
//! that were deleted long ago. (Format: bbolt's page.go, bucket.go and meta.go.)

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::digest;
use crate::node::store::{BOLT_MAGIC as MAGIC, BOLT_PAGE_HEADER as PAGE_HEADER};

const VERSION: u32 = 2;
/// Sizes in bytes, and offsets of a meta page's fields from the end of its header.
const ELEMENT: usize = 16;
const META: usize = 56;
const META_PAGE_SIZE: usize = 8;
const META_ROOT: usize = 16;
const META_FREELIST: usize = 32;
const META_TRANSACTION: usize = 48;
/// Flags of pages, and of a leaf's elements if they are buckets.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const BUCKET: u32 = 1;

/// Overwrites every page that holds no key and no bucket. The database must not be open anywhere.
pub fn clear_free_pages(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path).map_err(|cause| Error::io("read", path, cause))?;
    clear(&mut bytes).ok_or_else(|| Error::new(format!("{} is damaged, or is not a bbolt database", path.display())))?;
    fs::write(path, bytes).map_err(|cause| Error::io("write", path, cause))
}

fn clear(bytes: &mut [u8]) -> Option<()> {
    let mut pages = Pages { size: page_size(bytes)?, bytes, used: vec![] };
    pages.used.resize(bytes.len().div_ceil(pages.size), false);
    let meta = newest_meta(bytes, pages.size)?;
    pages.used[..2].fill(true);
    // The freelist, which containerd's databases do not store.
    match number(meta, META_FREELIST)? {
        u64::MAX => {}
        list => pages.mark(list).map(drop)?,
    }
    pages.walk(number(meta, META_ROOT)?)?;
    let (size, used) = (pages.size, pages.used);
    let free = bytes.chunks_mut(size).zip(used).filter(|(_, used)| !used);
    free.for_each(|(page, _)| page.fill(0));
    Some(())
}

fn page_size(bytes: &[u8]) -> Option<usize> {
    let size = word(bytes, PAGE_HEADER + META_PAGE_SIZE)? as usize;
    (size.is_power_of_two() && size >= 512 && bytes.len() >= 2 * size).then_some(size)
}

/// The two meta pages are written in turn. The newest complete one counts.
fn newest_meta(bytes: &[u8], size: usize) -> Option<&[u8]> {
    let meta = |page: usize| bytes.get(page * size + PAGE_HEADER..)?.get(..META + 8);
    let is_whole =
        |meta: &&[u8]| word(meta, 0) == Some(MAGIC) && word(meta, 4) == Some(VERSION) && number(meta, META) == Some(digest(&meta[..META]));
    [meta(0)?, meta(1)?].into_iter().filter(is_whole).max_by_key(|meta| number(meta, META_TRANSACTION))
}

struct Pages<'a> {
    bytes: &'a [u8],
    size: usize,
    used: Vec<bool>,
}

impl<'a> Pages<'a> {
    /// Marks a page and its overflow pages as used, and returns them.
    fn mark(&mut self, id: u64) -> Option<&'a [u8]> {
        let (id, start) = (usize::try_from(id).ok()?, usize::try_from(id).ok()?.checked_mul(self.size)?);
        let more = word(self.bytes.get(start..)?, 12)? as usize;
        let used = self.used.get_mut(id..=id.checked_add(more)?)?;
        // A second reference means damage, and could be a cycle.
        used.iter().all(|used| !used).then_some(())?;
        used.fill(true);
        self.bytes.get(start..start + (more + 1) * self.size)
    }

    /// Marks a page and everything below it as used.
    fn walk(&mut self, id: u64) -> Option<()> {
        let page = self.mark(id)?;
        let (flags, count) = (half(page, 8)?, half(page, 10)? as usize);
        for at in (0..count).map(|index| PAGE_HEADER + index * ELEMENT) {
            let element = page.get(at..)?;
            match flags {
                BRANCH => self.walk(number(element, 8)?)?,
                LEAF if word(element, 0)? & BUCKET != 0 => {
                    let value = word(element, 4)? as usize + word(element, 8)? as usize;
                    // A small bucket has no page of its own, and its root is 0.
                    match number(element, value)? {
                        0 => {}
                        root => self.walk(root)?,
                    }
                }
                LEAF => {}
                _ => return None,
            }
        }
        Some(())
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const SIZE: usize = 512;

    fn page(id: u64, flags: u16, more: u32, elements: &[[u8; ELEMENT]], data: &[u8]) -> Vec<u8> {
        let mut page = [&id.to_le_bytes()[..], &flags.to_le_bytes(), &(elements.len() as u16).to_le_bytes(), &more.to_le_bytes()].concat();
        page.extend(elements.iter().flatten());
        page.extend(data);
        page.resize(SIZE * (more as usize + 1), 0);
        page
    }

    fn meta(id: u64, root: u64, transaction: u64) -> Vec<u8> {
        let words = [MAGIC, VERSION, SIZE as u32, 0].map(u32::to_le_bytes).concat();
        let numbers = [root, 0, u64::MAX, 9, transaction].map(u64::to_le_bytes).concat();
        let mut meta = [words, numbers].concat();
        meta.extend(digest(&meta).to_le_bytes());
        page(id, 4, 0, &[], &meta)
    }

    /// An element of a leaf, whose key and value start `pos` bytes after it.
    fn leaf(flags: u32, pos: u32, key: u32, value: u32) -> [u8; ELEMENT] {
        [flags, pos, key, value].map(u32::to_le_bytes).concat().try_into().unwrap()
    }

    fn branch(child: u64) -> [u8; ELEMENT] {
        [&0_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &child.to_le_bytes()].concat().try_into().unwrap()
    }

    /// Root 3: branch to 4 and 6. 4 (with 5): a long value, and the bucket "b" with its root in 7. 6: the inline
    /// bucket "i". 2 is the older root; 8 is free, and so is everything after it.
    pub fn database() -> Vec<u8> {
        let long = [b"k", &[b'v'; SIZE][..], b"b", &7_u64.to_le_bytes(), &[0; 8]].concat();
        [
            meta(0, 3, 12),
            meta(1, 2, 11),
            page(2, LEAF, 0, &[leaf(0, 16, 1, 6)], b"ksecret"),
            page(3, BRANCH, 0, &[branch(4), branch(6)], b""),
            page(4, LEAF, 1, &[leaf(0, 32, 1, SIZE as u32), leaf(BUCKET, 16 + 1 + SIZE as u32, 1, 16)], &long),
            page(6, LEAF, 0, &[leaf(BUCKET, 16, 1, 32)], &[b"i", &[0; 16][..], &[0; 16]].concat()),
            page(7, LEAF, 0, &[leaf(0, 16, 1, 4)], b"kkept"),
            page(8, LEAF, 0, &[leaf(0, 16, 1, 6)], b"ksecret"),
            b"secret".to_vec(),
        ]
        .concat()
    }

    #[test]
    fn only_what_is_free_is_cleared() {
        let (before, mut after) = (database(), database());
        clear(&mut after).unwrap();
        let contains = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(contains(&before, "secret") && !contains(&after, "secret"));
        assert!(before.len() == after.len() && before[..2 * SIZE] == after[..2 * SIZE]);
        assert!(before[3 * SIZE..8 * SIZE] == after[3 * SIZE..8 * SIZE], "a page that is used has changed");
    }

    #[test]
    fn what_is_no_whole_database_is_refused() {
        for (at, byte) in [
            (PAGE_HEADER, 0),
            (PAGE_HEADER + META_PAGE_SIZE, 3),
            (3 * SIZE + 8, 16),
            (3 * SIZE + PAGE_HEADER + 8, 99),
            (3 * SIZE + PAGE_HEADER + 8, 3),
        ] {
            let mut damaged = database();
            damaged[at] = byte;
            // The older meta page is whole, too.
            damaged[SIZE + PAGE_HEADER] = 0;
            assert_eq!(clear(&mut damaged), None, "byte {at} = {byte}");
        }
        assert_eq!(clear(&mut []), None);
    }
}
