//! Images of a data set.

pub mod picture {
    //! Header, orientation and pixels of an image.

    use std::io::Cursor;

    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbaImage};
    use tenggat_train::data::pictures as dataset;

    use crate::scratch::Scratch;

    /// Most pixels that are decoded: larger ones are allowed and take seconds, in which thousands of others
    /// can be tried. The limits themselves have tests of their own.
    const MOST_PIXELS: usize = 1 << 20;

    /// See the module.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        let path = scratch.write("a.png", bytes);
        let size = dataset::size(&path);
        if size.is_ok_and(|(width, height)| width * height <= MOST_PIXELS) {
            let _ = dataset::load_whole(&path, 64);
        }
    }

    /// One image of every kind, and those that carry an orientation again with one.
    pub fn seeds() -> Vec<Vec<u8>> {
        let picture =
            RgbaImage::from_fn(9, 7, |x, y| image::Rgba([20 * x as u8, 30 * y as u8, 90, 255 - 9 * x as u8]));
        let rgba = DynamicImage::ImageRgba8(picture);
        let rgb = DynamicImage::ImageRgb8(rgba.to_rgb8());
        let kinds =
            [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];
        let mut seeds: Vec<Vec<u8>> =
            kinds.into_iter().chain([ImageFormat::Tiff]).map(|kind| encoded(&rgb, kind)).collect();
        seeds.push(encoded(&rgba, ImageFormat::Png));
        seeds.push(encoded(&DynamicImage::ImageLuma16(rgb.to_luma16()), ImageFormat::Png));
        seeds.push(encoded(&DynamicImage::ImageLuma8(rgb.to_luma8()), ImageFormat::Tiff));
        // Little-endian TIFF of one entry: tag 0x112, one short, "turned by 90 degrees".
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = (Vec::new(), Vec::new(), Vec::new());
        write(JpegEncoder::new(&mut turned.0), &rgb, exif);
        write(PngEncoder::new(&mut turned.1), &rgb, exif);
        write(WebPEncoder::new_lossless(&mut turned.2), &rgb, exif);
        seeds.extend([turned.0, turned.1, turned.2]);
        seeds
    }

    fn encoded(picture: &DynamicImage, kind: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, kind).expect("an encoder");
        bytes.into_inner()
    }

    fn write(mut encoder: impl ImageEncoder, picture: &DynamicImage, exif: &[u8]) {
        encoder.set_exif_metadata(exif.to_vec()).expect("a kind with EXIF");
        let (width, height) = (picture.width(), picture.height());
        encoder.write_image(picture.as_bytes(), width, height, ExtendedColorType::Rgb8).expect("an encoder");
    }
}
