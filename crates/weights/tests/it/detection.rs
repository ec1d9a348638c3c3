use serde_json::json;
use weights::checkpoint::Checkpoint;
use weights::detect::{
    Compact, Dat, DetectError, Layout, Naming, Resi, RrdbNet, Shapes, SwinIr, Upsampler, detect, detect_shapes,
};
use weights::synthetic::{self, Fill};

use crate::goldens::networks;

const COMPACT: Layout = Layout::Compact(Compact { num_in_ch: 3, num_out_ch: 3, num_feat: 24, num_conv: 8, upscale: 2 });

const ESRGAN: RrdbNet = RrdbNet {
    naming: Naming::BasicSr,
    in_nc: 3,
    out_nc: 3,
    num_filters: 16,
    num_blocks: 2,
    ups: 2,
    plus: false,
    shuffle_factor: None,
};

fn shapes(layout: &Layout) -> Shapes {
    layout.tensors().into_iter().collect()
}

#[test]
fn a_layout_is_found_again_from_its_tensors() {
    let namings =
        (0..4).flat_map(|ups| [Naming::Old { ups }, Naming::BasicSr, Naming::Bsrgan].map(|naming| (ups, naming)));
    for (ups, naming) in namings {
        for (num_blocks, in_nc, out_nc) in [(1, 3, 3), (3, 3, 3), (2, 1, 1), (2, 4, 3)] {
            let layout = Layout::Esrgan(RrdbNet { naming, ups, num_blocks, in_nc, out_nc, ..ESRGAN });
            let found = detect_shapes(&shapes(&layout)).unwrap();
            assert_eq!(found.layout, layout);
            assert_eq!(found.facts.scale, 1 << ups);
        }
    }
    let plus = Layout::Esrgan(RrdbNet { naming: Naming::Old { ups: 2 }, plus: true, ..ESRGAN });
    assert_eq!(detect_shapes(&shapes(&plus)).unwrap().layout, plus);
    assert_eq!(detect_shapes(&shapes(&plus)).unwrap().facts.tags, ["ESRGAN+", "16nf", "2nb"]);

    for (num_in_ch, num_out_ch, upscale) in [(3, 3, 1), (3, 3, 4), (1, 1, 3), (4, 4, 2), (4, 3, 2)] {
        let layout = Layout::Compact(Compact { num_in_ch, num_out_ch, upscale, num_feat: 8, num_conv: 3 });
        assert_eq!(detect_shapes(&shapes(&layout)).unwrap().layout, layout);
    }
}

#[test]
fn pixels_that_become_channels_divide_the_scale() {
    for (factor, ups, scale) in [(2, 2, 2), (4, 2, 1), (2, 1, 1), (4, 3, 2)] {
        let in_nc = 3 * factor * factor;
        let layout = Layout::Esrgan(RrdbNet { in_nc, ups, shuffle_factor: Some(factor), ..ESRGAN });
        let facts = detect_shapes(&shapes(&layout)).unwrap().facts;
        assert_eq!((facts.scale, facts.input_channels), (scale, 3));
        assert_eq!((facts.size_requirements.minimum, facts.size_requirements.multiple_of), (4, 4));
    }
}

/// A small SwinIR; its fields are changed by the tests.
fn swinir() -> SwinIr {
    SwinIr {
        in_chans: 3,
        img_size: 64,
        embed_dim: 12,
        depths: vec![2, 1],
        num_heads: vec![2, 3],
        window_size: 4,
        mlp_hidden: 24,
        patch_norm: true,
        resi_connection: Resi::Conv1,
        upsampler: Upsampler::PixelShuffle { num_feat: 8, steps: vec![2, 2] },
        start_unshuffle: 1,
    }
}

#[test]
fn every_head_is_found_again() {
    for (upsampler, start_unshuffle, scale) in [
        (Upsampler::None, 1, 1),
        (Upsampler::Direct { scale: 3 }, 1, 3),
        (Upsampler::Direct { scale: 4 }, 2, 2),
        (Upsampler::PixelShuffle { num_feat: 8, steps: vec![] }, 1, 1),
        (Upsampler::PixelShuffle { num_feat: 8, steps: vec![3] }, 1, 3),
        (Upsampler::PixelShuffle { num_feat: 8, steps: vec![2, 2, 2] }, 4, 2),
        (Upsampler::NearestConv { num_feat: 8, ups: 3 }, 1, 8),
    ] {
        for (resi_connection, patch_norm) in [(Resi::Conv1, true), (Resi::Conv3, false)] {
            let upsampler = upsampler.clone();
            let net = SwinIr { upsampler, start_unshuffle, resi_connection, patch_norm, ..swinir() };
            let layout = Layout::SwinIr(net);
            let found = detect_shapes(&shapes(&layout)).unwrap();
            assert_eq!(found.layout, layout);
            assert_eq!(found.facts.scale, scale, "{layout:?}");
            assert_eq!(found.facts.size_requirements.multiple_of as usize, start_unshuffle * start_unshuffle);
        }
    }
}

#[test]
fn what_follows_from_the_sizes_may_be_missing() {
    for (name, mut shapes, _) in networks() {
        let whole = detect_shapes(&shapes).unwrap();
        let parts = whole.layout.parts();
        // By these the architecture or one of its sizes is told.
        let tells = |name: &str| {
            ["_SA", "_OCA", "no_norm", "init_pos"].iter().any(|end| name.ends_with(end))
                || name == "layers.0.residual_group.blocks.0.attn.relative_position_index"
                || name.starts_with("layers.0.blocks.0.attn.attns.0.r")
                || (name.contains("eval_conv") && (name.contains("block_1.") || name.contains("conv_2.")))
        };
        let spare = parts.iter().filter(|part| !part.role.is_needed() && !tells(&part.name));
        let removed = spare.filter(|part| shapes.remove(&part.name).is_some()).count();
        let found = detect_shapes(&shapes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let ends = ["SwinIR", "DAT", "SPAN"];
        assert_eq!(removed > 0, ends.contains(&whole.layout.architecture()), "{name}: {removed} removed");
        assert_eq!(found.facts.parameters, whole.facts.parameters, "{name}");
        let needed = parts.iter().find(|part| part.role.is_needed() && !part.name.ends_with(".bias")).unwrap();
        shapes.remove(&needed.name);
        assert!(detect_shapes(&shapes).is_err(), "{name} without {}", needed.name);
    }
}

#[test]
fn a_mask_may_be_of_any_size() {
    let mut shapes = shapes(&Layout::SwinIr(swinir()));
    shapes.insert("layers.0.residual_group.blocks.1.attn_mask".to_owned(), vec![100, 16, 16]);
    assert_eq!(detect_shapes(&shapes).unwrap().facts.tags[1], "s40w4");
    shapes.insert("layers.1.residual_group.blocks.0.attn_mask".to_owned(), vec![100, 16, 16]);
    let unexpected = "the SwinIR model has an unexpected `layers.1.residual_group.blocks.0.attn_mask`";
    assert_eq!(detect_shapes(&shapes).unwrap_err().to_string(), unexpected);
}

#[test]
fn counters_of_operations_are_passed_over() {
    let (_, mut shapes, _) = networks().into_iter().find(|(name, ..)| name == "omnisr_x2_bare").unwrap();
    shapes.insert("total_ops".to_owned(), vec![1]);
    shapes.insert("residual_layer.0.total_params".to_owned(), vec![1]);
    assert!(detect_shapes(&shapes).is_ok());
    shapes.insert("residual_layer.0.total".to_owned(), vec![1]);
    assert!(detect_shapes(&shapes).is_err());
}

#[test]
fn which_side_of_a_window_is_which_is_told_by_its_distances() {
    let net = Dat {
        in_chans: 3,
        img_size: 64,
        embed_dim: 32,
        depth: vec![2, 1],
        num_heads: vec![2, 4],
        split_size: [4, 8],
        ffn_hidden: 64,
        qkv_bias: true,
        resi_connection: Resi::Conv1,
        upsampler: Upsampler::Direct { scale: 2 },
    };
    let file = |last: [f32; 2]| {
        let fill = |(name, shape): (String, Vec<usize>)| {
            let fill = match name.ends_with("rpe_biases") {
                true => Fill::Given([&vec![0.0; shape[0] * 2 - 2][..], &last].concat()),
                false => Fill::Synthetic,
            };
            (name, shape, fill)
        };
        let entries: Vec<_> = Layout::Dat(net.clone()).tensors().into_iter().map(fill).collect();
        Checkpoint::from_bytes(synthetic::safetensors(&entries)).unwrap()
    };
    for (last, split_size) in [([3.0, 7.0], [4, 8]), ([7.0, 3.0], [8, 4]), ([0.5, -1.0], [4, 8])] {
        let network = detect(&file(last)).unwrap();
        assert_eq!(network.layout, Layout::Dat(Dat { split_size, ..net.clone() }));
        assert_eq!(network.facts.hyperparameters["split_size"], json!(split_size));
    }
}

#[test]
fn a_refusal_names_the_tensor() {
    let check = |layout: &Layout, change: &dyn Fn(&mut Shapes), expected: &str| {
        let mut shapes = shapes(layout);
        change(&mut shapes);
        assert_eq!(detect_shapes(&shapes).unwrap_err().to_string(), expected);
    };
    let put = |name: &'static str, shape: &'static [usize]| {
        move |shapes: &mut Shapes| drop(shapes.insert(name.to_owned(), shape.to_vec()))
    };
    let esrgan = &Layout::Esrgan(ESRGAN);
    let swin = &Layout::SwinIr(swinir());
    check(&COMPACT, &|shapes| drop(shapes.remove("body.7.weight")), "the Compact model lacks tensor `body.7.weight`");
    check(&COMPACT, &put("head.weight", &[1]), "the Compact model has an unexpected `head.weight`");
    check(
        &COMPACT,
        &put("body.4.weight", &[24, 24, 1, 1]),
        "the Compact model has a tensor of another shape: `body.4.weight` should be [24, 24, 3, 3], but is [24, 24, 1, 1]",
    );
    check(
        &COMPACT,
        &put("body.18.weight", &[16, 24, 3, 3]),
        "the Compact model has a tensor of another shape: `body.18.bias` should be [16], but is [12]",
    );
    check(
        &COMPACT,
        &put("body.18.weight", &[11, 24, 3, 3]),
        "tensor `body.18.weight` of the Compact model has shape [11, 24, 3, 3], from which the scale cannot be told",
    );
    check(
        &COMPACT,
        &put("body.0.weight", &[1 << 40, 0, 3, 3]),
        "tensor `body.0.weight` of the Compact model has shape [1099511627776, 0, 3, 3], from which the number of channels \
         cannot be told",
    );
    check(&COMPACT, &put("body.4000000000.weight", &[24]), "the Compact model lacks tensor `body.19`");
    check(esrgan, &|shapes| drop(shapes.remove("conv_hr.bias")), "the ESRGAN model lacks tensor `conv_hr.bias`");
    check(
        esrgan,
        &put("body.0.rdb1.conv1.weight", &[16, 16, 3, 3]),
        "the dense blocks of the ESRGAN model grow by 16 channels, but only a growth of 32 is supported",
    );
    check(
        &Layout::Esrgan(RrdbNet { in_nc: 48, ups: 1, shuffle_factor: Some(4), ..ESRGAN }),
        &|_| {},
        "the ESRGAN model scales by 2/4, which is no whole number",
    );
    check(
        swin,
        &put("layers.0.residual_group.blocks.0.attn.relative_position_bias_table", &[49, 5]),
        "tensor `layers.0.residual_group.blocks.0.attn.relative_position_bias_table` of the SwinIR model has shape [49, 5], \
         from which the number of heads cannot be told",
    );
    check(
        swin,
        &|shapes| {
            shapes.retain(|name, _| !name.contains("norm2"));
            shapes.insert("absolute_pos_embed".to_owned(), vec![1, 4096, 12]);
            shapes.insert("norm.bias".to_owned(), vec![13]);
            shapes.insert("norm.weight".to_owned(), vec![14]);
        },
        "the SwinIR model lacks 6 tensors, such as `layers.0.residual_group.blocks.0.norm2.weight`, \
         `layers.0.residual_group.blocks.0.norm2.bias`, `layers.0.residual_group.blocks.1.norm2.weight`; it has an unexpected \
         `absolute_pos_embed`; it has 2 tensors of another shape, such as `norm.weight` should be [12], but is [14], \
         `norm.bias` should be [12], but is [13]",
    );
}

#[test]
fn an_unknown_file_is_told_what_it_comes_nearest_to() {
    let check = |names: &[&str], expected: &str| {
        let shapes = names.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
        assert_eq!(detect_shapes(&shapes).unwrap_err().to_string(), expected);
    };
    check(
        &["encoder.a", "encoder.b"],
        "no known architecture has these tensors; the first of 2 are `encoder.a`, `encoder.b`",
    );
    check(
        &["layers.0.residual_group.blocks.0.norm1.weight", "layers.0.residual_group.blocks.0.mlp.fc1.bias"],
        "no known architecture has these tensors; nearest is SwinIR, which would also need \
         `layers.0.residual_group.blocks.0.attn.relative_position_index`, `conv_first.weight`; the first of 2 are \
         `layers.0.residual_group.blocks.0.mlp.fc1.bias`, `layers.0.residual_group.blocks.0.norm1.weight`",
    );
    check(
        &["conv_1.sk.weight", "conv_2.sk.weight", "conv_cat.weight"],
        "no known architecture has these tensors; nearest is SPAN, which would also need `block_1.c1_r.sk.weight`, \
         `block_1.c1_r.eval_conv.weight`, `block_1.c3_r.eval_conv.weight` and 2 more; the first of 3 are \
         `conv_1.sk.weight`, `conv_2.sk.weight`, `conv_cat.weight`",
    );
}

#[test]
fn what_is_known_but_cannot_be_run_is_named() {
    let check = |names: &[&str], expected: &str| {
        let shapes = names.iter().map(|name| ((*name).to_owned(), vec![8, 8, 3, 3])).collect();
        assert_eq!(detect_shapes(&shapes).unwrap_err().to_string(), expected);
    };
    let plksr =
        ["feats.0.weight", "feats.1.refine.weight", "feats.1.lk.convs.0.weight", "feats.1.channe_mixer.0.weight"];
    check(&plksr, "this is a sparse-kernel PLKSR model, which is not supported yet");
    check(
        &["generator.model.1.bn_l.running_mean"],
        "this is a LaMa model, which needs a mask: it must be a single-image model",
    );
    let block = "layers.0.residual_group.blocks.0";
    let names = ["norm1.weight", "mlp.fc1.bias", "attn.relative_position_index"].map(|name| format!("{block}.{name}"));
    let swin2sr: Vec<&str> =
        names.iter().map(String::as_str).chain(["conv_first.weight", "patch_embed.proj.weight"]).collect();
    check(&swin2sr, "this is a Swin2SR model, which is not supported yet");
}

/// No size in a file may make anything overflow or take long.
#[test]
fn absurd_sizes_are_refused() {
    for (name, shapes, _) in networks() {
        for tensor in shapes.keys() {
            for size in [0, 1, 7, 1 << 16, 1 << 40, usize::MAX] {
                for axis in 0..shapes[tensor].len() {
                    let mut absurd = shapes.clone();
                    absurd.get_mut(tensor).unwrap()[axis] = size;
                    match detect_shapes(&absurd) {
                        Ok(found) => assert!(found.facts.scale <= 1 << 16, "{name}: {tensor} {axis} {size}"),
                        Err(DetectError::Unknown { .. }) => panic!("{name}: the names are the same"),
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

/// Lists within lists must not multiply to more work than the file has names.
#[test]
fn long_lists_are_refused_by_their_first_gap() {
    let check = |network: &str, name: &dyn Fn(usize) -> String, lacks: &str| {
        let (_, mut shapes, _) = networks().into_iter().find(|(name, ..)| name == network).unwrap();
        shapes.extend((0..20_000).map(|i| (name(i), vec![1])));
        let expected = format!("lacks tensor `{lacks}`");
        let error = detect_shapes(&shapes).unwrap_err().to_string();
        assert!(error.ends_with(&expected), "{network}: {error}");
    };
    let far = |list: &'static str, rest: &'static str| move |i| format!("{list}.{i}.{rest}.19999.a");
    check("swinir_grey_x1", &far("layers", "residual_group.blocks"), "layers.0.residual_group.blocks.2");
    check("hat_x3", &far("layers", "residual_group.blocks"), "layers.0.residual_group.blocks.1");
    check("dat_x3_3conv", &far("layers", "blocks"), "layers.0.blocks.1");
    check("atd_x1", &far("layers", "residual_group.layers"), "layers.0.residual_group.layers.2");
    check("rcan_x4", &|i| format!("body.0.body.{i}.a"), "body.1.body.2");
    check("rcan_x4", &|i| format!("body.{i}.body.0.a"), "body.2.body.1");
    check("omnisr_x2_bare", &|i| format!("residual_layer.{i}.residual_layer.0.a"), "residual_layer.1.residual_layer.1");
}
