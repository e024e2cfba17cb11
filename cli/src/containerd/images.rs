//! Image records: a name, what it points at, and labels.

use oci::Digest;
use prost_types::FieldMask;
use proto::containerd::services::images::v1::{
    CreateImageRequest, GetImageRequest, Image, ListImagesRequest, UpdateImageRequest,
    images_client::ImagesClient,
};

use super::{Code, Containerd, Descriptor, Error, ErrorKind, Labels, status, wire};

impl Containerd {
    /// What an image name points at, if there is an image of that name.
    pub(crate) async fn image(&self, name: &str) -> Result<Option<Descriptor>, Error> {
        let doing = format!("look up image {name}");
        let request = self.request(GetImageRequest { name: name.to_owned() })?;
        match ImagesClient::new(self.channel.clone()).get(request).await {
            Ok(answer) => read(&doing, answer.into_inner().image.unwrap_or_default()).map(Some),
            Err(s) if s.code() == Code::NotFound => Ok(None),
            Err(s) => Err(status(&doing, s)),
        }
    }

    /// All image names and what they point at.
    pub(crate) async fn images(&self) -> Result<Vec<(String, Digest)>, Error> {
        let doing = "list images";
        let request = self.request(ListImagesRequest { filters: Vec::new() })?;
        let listed = ImagesClient::new(self.channel.clone()).list(request).await;
        let listed = listed.map_err(|s| status(doing, s))?.into_inner().images;
        let found = listed.into_iter().filter_map(|image| {
            let name = image.name.clone();
            Some((name, read(doing, image).ok()?.digest))
        });
        Ok(found.collect())
    }

    /// Points an image name at a descriptor; labels it has stay.
    pub(crate) async fn tag(&self, name: &str, target: &Descriptor) -> Result<(), Error> {
        let image = Image { name: name.to_owned(), target: Some(wire(target)), ..Image::default() };
        let doing = format!("create image {name}");
        let mut client = ImagesClient::new(self.channel.clone());
        let create = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match client.create(self.request(create)?).await {
            Ok(_) => return Ok(()),
            Err(s) if s.code() == Code::AlreadyExists => {}
            Err(s) => return Err(status(&doing, s)),
        }
        self.update(image, vec!["target".to_owned()], &doing).await
    }

    /// Adds labels to an image record; what it points at (`target`) and other labels stay.
    pub(crate) async fn label_image(
        &self,
        name: &str,
        target: &Descriptor,
        labels: Labels,
    ) -> Result<(), Error> {
        let paths = labels.keys().map(|label| format!("labels.{label}")).collect();
        // containerd 2.1 looks at the target whatever the mask says, and ends itself where there is none.
        let image = Image { name: name.to_owned(), labels, target: Some(wire(target)), ..Image::default() };
        self.update(image, paths, &format!("label image {name}")).await
    }

    async fn update(&self, image: Image, paths: Vec<String>, doing: &str) -> Result<(), Error> {
        let update_mask = Some(FieldMask { paths });
        let update = UpdateImageRequest { image: Some(image), update_mask, source_date_epoch: None };
        let updated = ImagesClient::new(self.channel.clone()).update(self.request(update)?).await;
        updated.map(drop).map_err(|s| status(doing, s))
    }
}

fn read(doing: &str, image: Image) -> Result<Descriptor, Error> {
    let target = image.target.unwrap_or_default();
    let digest = target.digest.parse().map_err(|cause| Error::from_oci(doing, cause))?;
    let size = u64::try_from(target.size);
    let size = size.map_err(|cause| Error::new(ErrorKind::Corrupt, doing).because(cause))?;
    Ok(Descriptor::new(target.media_type, digest, size))
}
