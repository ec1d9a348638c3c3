use weights::detect::{Compact, Layout, Naming, RrdbNet, Shapes, detect_shapes};

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

fn shapes(layout: Layout) -> Shapes {
    layout.tensors().into_iter().collect()
}

#[test]
fn a_layout_is_found_again_from_its_tensors() {
    let namings =
        (0..4).flat_map(|ups| [Naming::Old { ups }, Naming::BasicSr, Naming::Bsrgan].map(|naming| (ups, naming)));
    for (ups, naming) in namings {
        for (num_blocks, in_nc, out_nc) in [(1, 3, 3), (3, 3, 3), (2, 1, 1), (2, 4, 3)] {
            let layout = Layout::Esrgan(RrdbNet { naming, ups, num_blocks, in_nc, out_nc, ..ESRGAN });
            let found = detect_shapes(&shapes(layout)).unwrap();
            assert_eq!(found.layout, layout);
            assert_eq!(found.facts.scale, 1 << ups);
        }
    }
    let plus = Layout::Esrgan(RrdbNet { naming: Naming::Old { ups: 2 }, plus: true, ..ESRGAN });
    assert_eq!(detect_shapes(&shapes(plus)).unwrap().layout, plus);
    assert_eq!(detect_shapes(&shapes(plus)).unwrap().facts.tags, ["ESRGAN+", "16nf", "2nb"]);

    for (num_in_ch, num_out_ch, upscale) in [(3, 3, 1), (3, 3, 4), (1, 1, 3), (4, 4, 2), (4, 3, 2)] {
        let layout = Layout::Compact(Compact { num_in_ch, num_out_ch, upscale, num_feat: 8, num_conv: 3 });
        assert_eq!(detect_shapes(&shapes(layout)).unwrap().layout, layout);
    }
}

#[test]
fn pixels_that_become_channels_divide_the_scale() {
    for (factor, ups, scale) in [(2, 2, 2), (4, 2, 1), (2, 1, 1), (4, 3, 2)] {
        let in_nc = 3 * factor * factor;
        let layout = Layout::Esrgan(RrdbNet { in_nc, ups, shuffle_factor: Some(factor), ..ESRGAN });
        let facts = detect_shapes(&shapes(layout)).unwrap().facts;
        assert_eq!((facts.scale, facts.input_channels), (scale, 3));
        assert_eq!((facts.size_requirements.minimum, facts.size_requirements.multiple_of), (4, 4));
    }
}

#[test]
fn a_refusal_names_the_tensor() {
    let check = |layout: Layout, change: &dyn Fn(&mut Shapes), expected: &str| {
        let mut shapes = shapes(layout);
        change(&mut shapes);
        assert_eq!(detect_shapes(&shapes).unwrap_err().to_string(), expected);
    };
    let esrgan = Layout::Esrgan(ESRGAN);
    check(COMPACT, &|shapes| drop(shapes.remove("body.7.weight")), "the Compact model lacks tensor `body.7.weight`");
    check(
        COMPACT,
        &|shapes| drop(shapes.insert("head.weight".into(), vec![1])),
        "the Compact model has an unexpected `head.weight`",
    );
    check(
        COMPACT,
        &|shapes| drop(shapes.insert("body.4.weight".into(), vec![24, 24, 1, 1])),
        "tensor `body.4.weight` of the Compact model should have shape [24, 24, 3, 3], but has [24, 24, 1, 1]",
    );
    check(
        COMPACT,
        &|shapes| drop(shapes.insert("body.18.weight".into(), vec![16, 24, 3, 3])),
        "tensor `body.18.bias` of the Compact model should have shape [16], but has [12]",
    );
    check(
        COMPACT,
        &|shapes| drop(shapes.insert("body.18.weight".into(), vec![11, 24, 3, 3])),
        "tensor `body.18.weight` of the Compact model has shape [11, 24, 3, 3], from which the scale cannot be told",
    );
    check(
        COMPACT,
        &|shapes| drop(shapes.insert("body.0.weight".into(), vec![usize::MAX, 0, 3, 3])),
        &format!(
            "tensor `body.0.weight` of the Compact model has shape [{}, 0, 3, 3], from which the number of channels cannot be told",
            usize::MAX
        ),
    );
    check(
        COMPACT,
        &|shapes| drop(shapes.insert("body.4000000000.weight".into(), vec![24])),
        "the Compact model lacks tensor `body.19`",
    );
    check(esrgan, &|shapes| drop(shapes.remove("conv_hr.bias")), "the ESRGAN model lacks tensor `conv_hr.bias`");
    check(
        esrgan,
        &|shapes| drop(shapes.insert("body.0.rdb1.conv1.weight".into(), vec![16, 16, 3, 3])),
        "the dense blocks of the ESRGAN model grow by 16 channels, but only a growth of 32 is supported",
    );
    check(
        Layout::Esrgan(RrdbNet { in_nc: 48, ups: 1, shuffle_factor: Some(4), ..ESRGAN }),
        &|_| {},
        "the ESRGAN model scales by 2/4, which is no whole number",
    );
    check(
        esrgan,
        &|shapes| *shapes = ["encoder.a", "encoder.b"].map(|name| (name.to_owned(), vec![1])).into(),
        "no known architecture has these tensors; the first of 2 are `encoder.a`, `encoder.b`",
    );
}

#[test]
fn architectures_that_cannot_be_run_yet_are_named() {
    let check = |architecture: &str, names: &[&str]| {
        let shapes = names.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
        let expected = format!("this is a {architecture} model, which is not supported yet");
        assert_eq!(detect_shapes(&shapes).unwrap_err().to_string(), expected);
    };
    let block = "layers.0.residual_group.blocks.0";
    check(
        "SwinIR",
        &[
            &format!("{block}.norm1.weight"),
            &format!("{block}.mlp.fc1.bias"),
            &format!("{block}.attn.relative_position_index"),
            "conv_first.1.weight",
        ],
    );
    check("OmniSR", &["residual_layer.0.residual_layer.0.layer.0.fn.0.weight", "input.weight", "up.0.weight"]);
    check(
        "PLKSR",
        &["feats.0.weight", "feats.1.refine.weight", "feats.1.lk.conv.weight", "feats.1.channe_mixer.0.weight"],
    );
    check(
        "SPAN",
        &[
            "conv_1.sk.weight",
            "block_1.c1_r.sk.weight",
            "block_1.c1_r.eval_conv.weight",
            "block_1.c3_r.eval_conv.weight",
            "conv_cat.weight",
            "conv_2.sk.weight",
            "conv_2.eval_conv.weight",
            "upsampler.0.weight",
        ],
    );
}
