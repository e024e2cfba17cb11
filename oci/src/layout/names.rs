//! What `index.json` says: which name stands for what. Pure.

use crate::digest::Digest;
use crate::image::{Descriptor, Index, media_type};

/// The annotation of a name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// an entry, without what is said about it in its folder: that is not part of the image
    Entry(Box<Descriptor>),
    /// several entries without a name, each of which says its platform: together they are an image
    Platforms(Vec<Descriptor>),
    /// something that is not listed; there may be a blob of this digest
    Unlisted(Digest),
    /// nothing; the names there are
    Nothing(Vec<String>),
}

/// A digest is looked for as one; the empty name is the entry without a name, or the only one.
pub(super) fn find(index: &Index, name: &str) -> Found {
    let entries = index.manifests();
    if let Ok(digest) = name.parse::<Digest>() {
        let listed = entries.iter().find(|entry| entry.digest == digest);
        return listed.map_or(Found::Unlisted(digest), found);
    }
    let fits = |entry: &&Descriptor| name_of(entry).unwrap_or_default() == name;
    // What refers to an image is none, and says so by its type.
    let images: Vec<&Descriptor> = entries.iter().filter(|entry| is_image(entry)).collect();
    let fitting: Vec<&Descriptor> = images.iter().copied().filter(fits).collect();
    match (&fitting[..], &images[..]) {
        // SOCI indexes beside their images have a platform, too.
        ([_, _, ..], _) if name.is_empty() && fitting.iter().all(|entry| entry.platform.is_some()) => {
            let together = entries.iter().filter(fits).filter(|entry| entry.platform.is_some());
            Found::Platforms(together.cloned().collect())
        }
        // Without a name it is unknown which of several is meant; of a name that stands there twice the first is it.
        ([first, rest @ ..], _) if !name.is_empty() || rest.is_empty() => found(first),
        ([], [only]) if name.is_empty() => found(only),
        _ => Found::Nothing(entries.iter().filter_map(name_of).map(str::to_owned).collect()),
    }
}

/// The name now stands for this, and for nothing it stood for before.
pub(super) fn name(index: &mut Index, name: &str, target: &Descriptor) {
    let mut entry = Descriptor::new(target.media_type.clone(), target.digest, target.size);
    if !name.is_empty() {
        entry.annotations.insert(REF_NAME.to_owned(), name.to_owned());
    }
    let entries = index.manifests.get_or_insert_default();
    entries.retain(|old| name_of(old).unwrap_or_default() != name || !is_image(old));
    entries.push(entry);
}

/// Lists what refers to something: without a name, so that no image is mistaken for it.
pub(super) fn list(index: &mut Index, referrer: &Descriptor) {
    let entries = index.manifests.get_or_insert_default();
    // Behind those that were listed before: the last is the newest.
    entries.retain(|entry| entry.digest != referrer.digest);
    entries.push(referrer.clone());
}

/// The entries of an artifact type.
pub(super) fn artifacts<'a>(
    index: &'a Index,
    artifact_type: &'a str,
) -> impl Iterator<Item = &'a Descriptor> {
    let manifests = index.manifests().iter();
    manifests.filter(move |entry| {
        entry.artifact_type == artifact_type && media_type::is_manifest(&entry.media_type)
    })
}

fn found(entry: &Descriptor) -> Found {
    Found::Entry(Box::new(Descriptor { annotations: Default::default(), ..entry.clone() }))
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).map(String::as_str)
}

fn is_image(entry: &Descriptor) -> bool {
    entry.artifact_type.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Platform;

    fn entry(name: &str, content: &str) -> Descriptor {
        let mut entry = Descriptor::of(media_type::OCI_MANIFEST, content.as_bytes());
        if !name.is_empty() {
            entry.annotations.insert(REF_NAME.to_owned(), name.to_owned());
        }
        entry
    }

    fn listing(entries: &[Descriptor]) -> Index {
        Index::of(entries.to_vec())
    }

    #[test]
    fn names_and_digests() {
        let check = |entries: &[Descriptor], name: &str, expected: Option<&Descriptor>| {
            let found = match find(&listing(entries), name) {
                Found::Entry(entry) => Some(entry.digest),
                Found::Platforms(_) | Found::Unlisted(_) | Found::Nothing(_) => None,
            };
            assert_eq!(found, expected.map(|entry| entry.digest), "{name:?}");
        };
        let (a, b, nameless) = (entry("a", "1"), entry("b", "2"), entry("", "3"));
        check(&[a.clone(), b.clone()], "b", Some(&b));
        check(&[a.clone(), b.clone()], "", None);
        check(&[a.clone(), b.clone()], &b.digest.to_string(), Some(&b));
        check(std::slice::from_ref(&a), "", Some(&a));
        check(std::slice::from_ref(&a), "c", None);
        check(&[a.clone(), nameless.clone()], "", Some(&nameless));
        let mut referrer = entry("", "4");
        referrer.artifact_type = "x".to_owned();
        check(&[referrer.clone(), a.clone()], "", Some(&a));
        let elsewhere = Digest::sha256(b"elsewhere");
        let found = find(&listing(std::slice::from_ref(&a)), &elsewhere.to_string());
        assert_eq!(found, Found::Unlisted(elsewhere));
    }

    #[test]
    fn a_list_of_platforms_is_the_image() {
        let of = |content: &str, platform: &str| {
            let platform: Platform = platform.parse().unwrap();
            Descriptor { platform: Some(platform), ..entry("", content) }
        };
        let both = [of("1", "linux/amd64"), of("2", "linux/arm64")];
        assert_eq!(find(&listing(&both), ""), Found::Platforms(both.to_vec()));
        assert!(matches!(find(&listing(&both[..1]), ""), Found::Entry(_)));
        // Neither a referrer nor an image with a name changes that.
        let referrer = Descriptor { artifact_type: "x".to_owned(), ..entry("", "3") };
        let more = [both[0].clone(), both[1].clone(), referrer, entry("n", "4")];
        assert_eq!(find(&listing(&more), ""), Found::Platforms(both.to_vec()));
        assert!(matches!(find(&listing(&more), "n"), Found::Entry(_)));
        // One image, and the index beside it.
        let beside = Descriptor { artifact_type: "x".to_owned(), ..of("6", "linux/amd64") };
        let converted = [entry("", "7"), beside.clone()];
        assert!(
            matches!(find(&listing(&converted), ""), Found::Entry(found) if found.digest == converted[0].digest)
        );
        let all = [both[0].clone(), beside, both[1].clone()];
        assert_eq!(find(&listing(&all), ""), Found::Platforms(all.to_vec()));
        // Two without a name of which one says no platform: it is unknown which is meant.
        let unclear = [both[0].clone(), entry("", "5")];
        assert!(matches!(find(&listing(&unclear), ""), Found::Nothing(_)));
    }

    #[test]
    fn a_name_moves_and_referrers_stay() {
        let mut index = listing(&[]);
        let (first, second, referrer) = (entry("", "1"), entry("", "2"), entry("", "3"));
        let referrer = Descriptor { artifact_type: "x".to_owned(), ..referrer };
        name(&mut index, "t", &first);
        name(&mut index, "", &first);
        list(&mut index, &referrer);
        list(&mut index, &referrer);
        name(&mut index, "t", &second);
        name(&mut index, "", &second);
        let digests: Vec<Digest> = index.manifests().iter().map(|entry| entry.digest).collect();
        assert_eq!(digests, [referrer.digest, second.digest, second.digest]);
        assert_eq!(artifacts(&index, "x").count(), 1);
    }
}
