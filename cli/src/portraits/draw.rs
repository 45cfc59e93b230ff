//! How a portrait is drawn. `tools/portraits/draw.py` draws the same pictures, to the last bit.

use image::RgbImage;

use super::attributes::{Attributes, Background, CLOTH, Clothing, Expression, Gender, Hair};
use super::canvas::{Canvas, Colour, FINE};
use super::{BLACK, CYAN, GOLD, VIOLET};

const PLAIN: [Colour; 3] = [[206, 206, 204], [184, 192, 198], [222, 214, 202]];
const BOOKS: [Colour; 4] = [[176, 60, 54], [60, 110, 84], [70, 90, 150], [222, 214, 190]];
const EYE: Colour = [30, 26, 30];
const LIPS: Colour = [196, 52, 62];
const MOUTH: Colour = [120, 44, 44];
const TEETH: Colour = [250, 246, 240];
const SHIRT: Colour = [246, 246, 242];
const TIE: Colour = [150, 30, 40];
const STRING: Colour = [248, 248, 244];

/// Centres of curls about the head's centre.
const CURLS: [[i32; 2]; 9] =
    [[-44, 18], [-52, -6], [-46, -32], [-28, -54], [0, -62], [28, -54], [46, -32], [52, -6], [44, 18]];
/// Tips of the crest's spikes, from the left, and where they grow from, about the head's centre.
const SPIKES: [[i32; 4]; 6] = [
    [-54, -56, -42, -14],
    [-38, -84, -30, -28],
    [-14, -98, -10, -38],
    [14, -98, 10, -38],
    [38, -84, 30, -28],
    [54, -56, 42, -14],
];

/// Three quarters of a colour.
fn dark(colour: Colour) -> Colour {
    colour.map(|c| (u16::from(c) * 3 / 4) as u8)
}

/// The picture of these attributes, 64×64.
pub fn draw(attributes: &Attributes) -> RgbImage {
    let bx = 128 + attributes.body_x;
    let head = [bx + attributes.head_x, 108 + attributes.head_y];
    let mut portrait = Portrait { canvas: backdrop(attributes), attributes, bx, head };
    portrait.behind();
    portrait.clothes();
    portrait.long_hair();
    portrait.face();
    portrait.hair_before();
    portrait.canvas.picture()
}

/// A canvas with the background.
fn backdrop(attributes: &Attributes) -> Canvas {
    let scene = attributes.scene;
    let odd = scene & 1;
    match attributes.background {
        Background::Plain => Canvas::new(PLAIN[attributes.tone]),
        Background::Beach => {
            let mut c = Canvas::new([150, 204, 240]);
            c.ellipse([36 + 184 * odd, 36 + scene / 4], [22, 22], [255, 244, 206]);
            c.rect([0, 116, 256, 172], [48, 124, 184]);
            c.rect([0, 172, 256, 256], [232, 210, 164]);
            c
        }
        Background::Forest => {
            let near = [38, 96, 50];
            let mut c = Canvas::new([170, 208, 178]);
            c.rect([0, 172, 256, 256], [70, 122, 54]);
            for k in 0..5 {
                let x = k * 64 - 32 + scene;
                c.polygon(&[[x - 36, 176], [x + 36, 176], [x, 48]], [84, 140, 84]);
            }
            for k in 0..4 {
                let x = k * 88 - 24 + scene / 2;
                c.rect([x - 7, 176, x + 7, 216], [88, 62, 44]);
                c.polygon(&[[x - 34, 136], [x + 34, 136], [x, 16]], near);
                c.polygon(&[[x - 42, 188], [x + 42, 188], [x, 72]], near);
            }
            c
        }
        Background::City => {
            let mut c = Canvas::new([206, 198, 196]);
            for (k, top) in (0..).zip([44, 84, 28, 100, 60, 36]) {
                let x = k * 52 + scene / 2;
                c.rect([x - 40, top, x + 2, 256], [160, 158, 166]);
            }
            for (k, top) in (0..).zip([96, 60, 116, 72]) {
                let x = k * 76 - 28 + scene / 2;
                c.rect([x, top, x + 48, 256], [110, 108, 120]);
                for row in 0..6 {
                    for column in 0..2 {
                        let (x, y) = (x + 8 + column * 20, top + 10 + row * 22);
                        c.rect([x, y, x + 12, y + 10], [236, 224, 176]);
                    }
                }
            }
            c.rect([0, 224, 256, 256], [86, 86, 90]);
            c
        }
        Background::Night => {
            let sky = [26, 32, 74];
            let mut c = Canvas::new(sky);
            for k in 0..16 {
                let (x, y) = ((k * 97 + scene * 8) % 256, (k * 53 + 11) % 168);
                c.rect([x, y, x + 5, y + 5], [240, 240, 220]);
            }
            let (x, y) = (212 - 168 * odd, 38 + scene / 4);
            c.ellipse([x, y], [24, 24], [244, 240, 214]);
            c.ellipse([x + 11, y - 5], [20, 20], sky);
            c.ellipse([64 + scene * 2, 268], [150, 84], [16, 22, 44]);
            c
        }
        Background::Room => {
            let wood = [130, 84, 52];
            let mut c = Canvas::new([226, 190, 158]);
            c.rect([0, 212, 256, 256], [168, 112, 74]);
            let (left, right) = if odd == 1 { (12, 188) } else { (188, 12) };
            let y = 28 + scene / 4;
            c.rect([left, y, left + 56, y + 76], wood);
            c.rect([left + 6, y + 6, left + 50, y + 70], [190, 220, 236]);
            c.rect([left + 25, y, left + 31, y + 76], wood);
            c.rect([left, y + 35, left + 56, y + 41], wood);
            for shelf in [72, 124] {
                c.rect([right, shelf, right + 56, shelf + 7], wood);
                for k in 0..5 {
                    let (x, height) = (right + 3 + k * 10, 22 + (k * 7 + scene) % 10);
                    c.rect([x, shelf - height, x + 8, shelf], BOOKS[((k + scene) % 4) as usize]);
                }
            }
            c
        }
    }
}

/// A picture under way.
struct Portrait<'a> {
    canvas: Canvas,
    attributes: &'a Attributes,
    /// The middle of the body.
    bx: i32,
    /// The centre of the head.
    head: [i32; 2],
}

impl Portrait<'_> {
    /// A hood, the hair that the head covers, and the neck.
    fn behind(&mut self) {
        let (bx, [hx, hy], c) = (self.bx, self.head, &mut self.canvas);
        let colour = self.attributes.hair_colour.rgb;
        if self.attributes.clothing == Clothing::Hoodie {
            c.ellipse([bx, 178], [66, 38], dark(self.attributes.clothing_colour.rgb));
        }
        match self.attributes.hair {
            Hair::Short => c.ellipse_within([hx, hy - 10], [48, 52], [0, hy + 8], colour),
            Hair::Long => {
                c.ellipse([hx, hy - 4], [56, 58], colour);
                c.rect([hx - 56, hy - 4, hx + 56, hy + 96], colour);
            }
            Hair::Bob => {
                c.ellipse([hx, hy - 4], [60, 58], colour);
                c.rect([hx - 60, hy - 4, hx + 60, hy + 40], colour);
            }
            Hair::Curly => CURLS.iter().for_each(|[x, y]| c.ellipse([hx + x, hy + y], [22, 22], colour)),
            Hair::Ponytail => {
                let side = if self.attributes.right { 1 } else { -1 };
                c.ellipse_within([hx, hy - 10], [46, 50], [0, hy], colour);
                c.ellipse([hx + 62 * side, hy + 14], [20, 54], colour);
                c.ellipse([hx + 46 * side, hy - 34], [20, 14], colour);
            }
            Hair::Crest => {
                for ([x, y, rx, ry], tint) in SPIKES.into_iter().zip([VIOLET, CYAN].into_iter().cycle()) {
                    let root = hy + ry;
                    c.polygon(&[[hx + rx - 20, root], [hx + x, hy + y], [hx + rx + 20, root]], tint);
                }
            }
            Hair::Bald => {}
        }
        c.rect([hx - 15, hy + 30, hx + 15, 196], dark(self.attributes.skin.rgb));
    }

    /// Neck line, shoulders, and what is worn.
    fn clothes(&mut self) {
        let (bx, hx) = (self.bx, self.head[0]);
        let skin = self.attributes.skin.rgb;
        let colour = self.attributes.clothing_colour.rgb;
        let shade = dark(colour);
        let wide = if self.attributes.gender == Gender::Man { 86 } else { 76 };
        let clothing = self.attributes.clothing;
        let (width, shoulders) = match clothing {
            Clothing::Dress => (wide - 12, skin),
            Clothing::Checker => (wide, BLACK),
            _ => (wide, colour),
        };
        self.torso(width, shoulders);
        let c = &mut self.canvas;
        match clothing {
            Clothing::TShirt => {
                for side in [-1, 1] {
                    let x = bx + side * (wide - 14);
                    c.rect([x - 16, 226, x + 16, 256], skin);
                }
                c.ellipse([bx, 180], [26, 16], skin);
            }
            Clothing::Hoodie => {
                c.ellipse([bx, 186], [34, 16], shade);
                c.ellipse([bx, 182], [20, 12], dark(skin));
                c.polygon(&[[bx - 32, 230], [bx + 32, 230], [bx + 44, 256], [bx - 44, 256]], shade);
                for x in [bx - 16, bx + 16] {
                    c.rect([x - 3, 196, x + 3, 224], STRING);
                }
            }
            Clothing::Dress => {
                c.polygon(&[[bx - 40, 212], [bx + 40, 212], [bx + 48, 256], [bx - 48, 256]], colour);
                for x in [bx - 32, bx + 32] {
                    c.rect([x - 6, 186, x + 6, 214], colour);
                }
                c.rect([bx - 46, 240, bx + 46, 247], shade);
            }
            Clothing::Suit => {
                c.polygon(&[[bx - 28, 178], [bx + 28, 178], [bx, 252]], SHIRT);
                for side in [-1, 1] {
                    let x = |x: i32| bx + x * side;
                    c.polygon(&[[x(24), 176], [x(46), 186], [x(26), 212], [bx, 254]], shade);
                }
                c.polygon(&[[bx - 7, 188], [bx + 7, 188], [bx + 9, 226], [bx, 240], [bx - 9, 226]], TIE);
            }
            Clothing::Sweater => {
                let white = self.attributes.clothing_colour == &CLOTH[3];
                for y in [204, 228] {
                    c.rect([bx - 50, y, bx + 50, y + 9], if white { shade } else { SHIRT });
                }
                c.rect([hx - 20, 162, hx + 20, 190], shade);
            }
            Clothing::Checker => {
                const TOP: i32 = 176;
                let gold = |x: i32, y: i32| ((x - bx + 480) / 24 + (y - TOP) / 24) % 2 == 1;
                c.recolour(TOP, BLACK, GOLD, gold);
                c.polygon(&[[hx - 16, 172], [hx + 16, 172], [bx, 204]], skin);
            }
        }
    }

    /// Shoulders: the upper half of an ellipse, its lower part squared.
    fn torso(&mut self, wide: i32, colour: Colour) {
        self.canvas.ellipse([self.bx, 256], [wide, 78], colour);
        self.canvas.rect([self.bx - wide, 240, self.bx + wide, 256], colour);
    }

    /// Long hair falls over the clothes.
    fn long_hair(&mut self) {
        let [hx, hy] = self.head;
        if self.attributes.hair == Hair::Long {
            for x in [hx - 44, hx + 44] {
                self.canvas.ellipse([x, hy + 66], [14, 60], self.attributes.hair_colour.rgb);
            }
        }
    }

    /// Head, eyes, brows, nose, mouth.
    fn face(&mut self) {
        let ([hx, hy], c) = (self.head, &mut self.canvas);
        let skin = self.attributes.skin.rgb;
        let woman = self.attributes.gender == Gender::Woman;
        for x in [hx - 40, hx + 40] {
            c.ellipse([x, hy + 4], [7, 10], dark(skin));
        }
        c.ellipse([hx, hy], [41, 50], skin);
        if !woman {
            c.rect([hx - 24, hy + 30, hx + 24, hy + 48], skin);
        }
        for x in [hx - 17, hx + 17] {
            c.ellipse([x, hy], [8, 6], TEETH);
            c.ellipse([x, hy], [5, 6], EYE);
            match woman {
                true => c.rect([x - 9, hy - 8, x + 9, hy - 5], EYE),
                false => c.rect([x - 10, hy - 15, x + 10, hy - 9], dark(dark(skin))),
            }
        }
        c.rect([hx - 3, hy + 8, hx + 3, hy + 17], dark(skin));
        let lips = if woman { LIPS } else { MOUTH };
        match self.attributes.expression {
            Expression::Neutral => c.rect([hx - 13, hy + 27, hx + 13, hy + 33], lips),
            Expression::Smiling => {
                c.ellipse_within([hx, hy + 22], [20, 18], [hy + 24, FINE], lips);
                c.ellipse_within([hx, hy + 22], [15, 11], [hy + 24, FINE], TEETH);
            }
            Expression::Surprised => {
                c.ellipse([hx, hy + 31], [10, 12], lips);
                c.ellipse([hx, hy + 31], [6, 8], EYE);
            }
        }
    }

    /// What covers the forehead.
    fn hair_before(&mut self) {
        let ([hx, hy], c) = (self.head, &mut self.canvas);
        let colour = self.attributes.hair_colour.rgb;
        match self.attributes.hair {
            Hair::Short => c.ellipse_within([hx, hy - 10], [46, 50], [0, hy - 26], colour),
            Hair::Long => {
                for side in [-1, 1] {
                    let x = |x: i32| hx + x * side;
                    let top = hy - 54;
                    let points =
                        [[x(44), hy - 4], [x(36), hy - 44], [hx, top], [x(-4), hy - 44], [x(26), hy - 22]];
                    c.polygon(&points, colour);
                }
            }
            Hair::Bob => {
                c.ellipse_within([hx, hy - 4], [50, 52], [0, hy - 18], colour);
                for x in [hx - 46, hx + 46] {
                    c.ellipse([x, hy + 8], [14, 36], colour);
                }
            }
            Hair::Curly => [-26, 0, 26].iter().for_each(|x| c.ellipse([hx + x, hy - 38], [18, 15], colour)),
            Hair::Ponytail => c.ellipse_within([hx, hy - 10], [44, 48], [0, hy - 34], colour),
            Hair::Crest => {
                let inner = SPIKES[1..5].iter().zip([CYAN, VIOLET].into_iter().cycle());
                for ([_, y, rx, _], tint) in inner {
                    let (x, base) = (hx + rx, hy - 40);
                    // rounded down, so that the port's and the original's halves agree
                    let tip = [hx + (rx * 3).div_euclid(2), hy + y + 14];
                    c.polygon(&[[x - 12, base], tip, [x + 12, base], [x, hy - 26]], tint);
                }
            }
            Hair::Bald => {}
        }
    }
}
