//! Bad input gets a clear typed error at the door, and loses nothing.

use anyhow::Result;
use imaging::{
    encode::{Compression, EncodeOptions},
    picture::{Color, Format, Sample},
};
use proto::v1;
use tests::{
    farm::{Farm, services},
    pictures::{compact, encoded, png},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::job;

fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violation = details.bad_request().and_then(|request| request.field_violations.first());
    violation.map(|violation| violation.field.clone()).unwrap_or_default()
}

async fn refused(farm: &Farm, picture: &[u8], job: v1::UpscaleJob) -> Result<Status> {
    let error = farm.submit(picture, job).await.expect_err("it is refused");
    error.downcast::<Status>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_refused_with_its_field() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).set("TESSERA_LIMITS_MAX_PIXELS", "10000000").start().await?;
    farm.add_model("quick", &compact(4, 1, 2)).await?;
    let good = png(30, 20);

    let check = async |picture: &[u8], job, code: Code, path: &str, words: &str| {
        let status = refused(&farm, picture, job).await?;
        assert_eq!((status.code(), field(&status).as_str()), (code, path), "{status:?}");
        assert!(status.message().contains(words), "`{words}` is not in: {}", status.message());
        anyhow::Ok(())
    };
    let quick = || job("quick", 64);
    let picture = "upscale.pictures[0]";
    check(&good[..good.len() / 2], quick(), Code::InvalidArgument, picture, "truncated").await?;
    check(b"not a picture at all", quick(), Code::InvalidArgument, picture, "not a PNG").await?;
    check(b"", quick(), Code::InvalidArgument, picture, "empty").await?;
    check(&bomb(), quick(), Code::InvalidArgument, picture, "limits.max_pixels").await?;
    check(&not_a_number(), quick(), Code::InvalidArgument, picture, "NaN").await?;
    check(&good, job("no-such-model", 64), Code::NotFound, "upscale.upscale_model", "no-such-model").await?;
    check(&good, job("quick", 16), Code::InvalidArgument, "upscale.tile.overlap", "less than").await?;
    let jpeg = v1::OutputOptions { format: "jpeg".to_owned(), ..Default::default() };
    let wide = png(33_000, 1);
    let too_wide = v1::UpscaleJob { output: Some(jpeg), ..quick() };
    check(&wide, too_wide, Code::InvalidArgument, "upscale.output.format", "65535 pixels a side").await?;

    // A size that is asked for: its numbers, and then the limits before and after it is made.
    use v1::resize_options::Target;
    let resized = |target| v1::UpscaleJob { resize: Some(v1::ResizeOptions { target, method: 0 }), ..quick() };
    let invalid = Code::InvalidArgument;
    check(&good, resized(None), invalid, "upscale.resize.target", "missing").await?;
    check(&good, resized(Some(Target::Factor(65.0))), invalid, "upscale.resize.factor", "0.01 to 64").await?;
    check(&good, resized(Some(Target::Width(0))), invalid, "upscale.resize.width", "1 to 1000000").await?;
    let target = Some(Target::Height(2_700));
    check(&good, resized(target), invalid, "upscale.resize", "4050x2700").await?;
    let large = png(2_000, 1_500);
    check(&large, resized(Some(Target::Width(100))), invalid, picture, "enlarged 2 times it is 4000x3000").await?;

    // s3:// URIs that do not exist.
    let source = v1::picture_source::Source::Uri("s3://tessera/no/such/object.png".to_owned());
    let request = v1::CreateJobRequest {
        kind: Some(v1::create_job_request::Kind::Upscale(v1::UpscaleJob {
            pictures: vec![v1::PictureSource { name: String::new(), source: Some(source) }],
            ..quick()
        })),
        ..v1::CreateJobRequest::default()
    };
    let status = farm.jobs()?.create_job(request).await.expect_err("it is refused");
    assert_eq!((status.code(), field(&status).as_str()), (Code::NotFound, "upscale.pictures[0].uri"), "{status:?}");

    // A checkpoint of another kind says which keys were seen.
    let strange = weights::synthetic::network(&[("strange.layer.weight".to_owned(), vec![3, 3, 3, 3])]);
    let status = farm.add_model("strange", &strange).await.expect_err("it is refused").downcast::<Status>()?;
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "digest"));
    assert!(status.message().contains("strange.layer.weight"), "{}", status.message());

    // Nothing was lost, and the farm works.
    let done = farm.submit(&good, quick()).await?;
    assert_eq!(farm.finished(&done.id).await?.job.state(), v1::JobState::Succeeded);
    Ok(())
}

/// A PNG whose header promises 2 gigabytes of pixels.
fn bomb() -> Vec<u8> {
    let mut bytes = png(8, 8);
    // Width and height follow the signature, the chunk's length and its name; then the chunk's checksum.
    bytes[16..20].copy_from_slice(&26_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&26_000_u32.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

/// A float TIFF with a NaN in its first pixel.
fn not_a_number() -> Vec<u8> {
    let options =
        EncodeOptions { compression: Compression::None, ..EncodeOptions::new(Format::Tiff, Color::Rgb, Sample::F32) };
    let mut bytes = encoded(4, 4, options);
    // The made picture begins with one half and one.
    let first = [0.5_f32.to_le_bytes(), 1.0_f32.to_le_bytes()].concat();
    let start = bytes.windows(8).position(|window| window == first).expect("uncompressed samples");
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_not_ours_is_set_aside_and_work_goes_on() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("quick", &compact(4, 1, 2)).await?;
    let first = farm.submit(&png(30, 30), job("quick", 64)).await?;
    farm.finished(&first.id).await?;

    let broker = broker::open(&services.broker, &broker::Options::default()).await?;
    let classes: Vec<_> =
        farm.workers_now().await?[0].compute_classes.iter().map(|class| class.parse()).collect::<Result<_, _>>()?;
    let names = proto::farm::Names::new(farm.name())?;
    for queue in names.served_by(&classes) {
        broker.publish(&queue, broker::Message::new("foreign", "{\"hello\": \"world\"}")).await?;
    }
    broker.publish(&names.reports(), broker::Message::new("foreign", "nonsense")).await?;
    let mut parked = broker.consume(&names.parked(), 16).await?;
    for _ in 0..names.served_by(&classes).len() + 1 {
        let delivery = tests::farm::within("a parked message", async { Ok(parked.next().await?) }).await?;
        assert_eq!(delivery.message.id, "foreign");
        delivery.ack().await?;
    }
    let second = farm.submit(&png(31, 30), job("quick", 64)).await?;
    assert_eq!(farm.finished(&second.id).await?.job.state(), v1::JobState::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_of_every_kind_come_back_as_they_were() -> Result<()> {
    let Some(services) = services() else { return Ok(()) };
    let farm = Farm::with_workers(&services, 1).start().await?;
    farm.add_model("quick", &compact(4, 1, 2)).await?;
    let cases = [
        (Format::Png, Color::Rgba, Sample::U8),
        (Format::Png, Color::Grey, Sample::U16),
        (Format::Tiff, Color::Rgb, Sample::U16),
        (Format::Tiff, Color::Rgba, Sample::F32),
        (Format::Webp, Color::Rgba, Sample::U8),
        (Format::Jpeg, Color::Rgb, Sample::U8),
    ];
    for (format, color, sample) in cases {
        let input = encoded(70, 41, EncodeOptions::new(format, color, sample));
        let submitted = farm.submit(&input, job("quick", 48)).await?;
        let done = farm.finished(&submitted.id).await?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), farm.download(done.digest()).await?)?;
        let info = imaging::decode::probe(file.path(), &imaging::picture::Limits::default())?;
        assert_eq!((info.format, info.width, info.height), (format, 140, 82));
        assert_eq!((info.color, info.sample), (color, sample), "{format:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_or_broker_that_is_down_at_start_is_waited_for_and_then_named() -> Result<()> {
    let folder = tempfile::TempDir::new()?;
    let store = format!("file://{}", folder.path().display());
    let nowhere = "amqp://guest:secret-word@127.0.0.1:1/%2f";
    let cases = [
        ("tessera-worker", store.as_str(), nowhere, "127.0.0.1:1"),
        ("tessera-coordinator", store.as_str(), nowhere, "127.0.0.1:1"),
        ("tessera-coordinator", "s3://bucket/prefix", nowhere, "s3://bucket/prefix"),
    ];
    for (program, store, broker, words) in cases {
        let mut command = std::process::Command::new(tests::farm::binary(program));
        command.args(["--store", store, "--start-timeout", "1s", "--broker-patience", "1s"]);
        command.env("TESSERA_BROKER", broker).env("TESSERA_CACHE", folder.path());
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
        command.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b").env("AWS_REGION", "us-east-1");
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{program}: {told}");
        assert!(told.contains(words) && told.contains("hint:"), "{program}: {told}");
        assert!(!told.contains("secret-word"), "no password is told: {told}");
    }
    Ok(())
}
