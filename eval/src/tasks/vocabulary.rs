//! Words for keys and lists, UUIDs, and draws of distinct ones.

use crate::draws::Draws;

/// Adjectives of keys such as `rusty-lantern`.
const ADJECTIVES: &str = "able ample amused ancient awake bitter blank blunt bold brave brief bright brisk broad calm \
     careful cheap cheerful chilly clean clever cloudy clumsy coarse common cosy crisp cruel \
     curious curly damp daring dark deaf decent deep dense distant double drowsy dull dusty eager \
     early elegant empty faint fair famous fancy fierce flat fluffy foreign formal fragile frank \
     frosty gentle giant glad golden graceful grand grateful greedy grumpy handsome happy harsh \
     hasty hidden hollow honest humble hungry idle jealous jolly keen kind lazy lively lonely \
     loud lucky magic mellow merry mighty modest muddy narrow neat nervous noisy odd patient \
     plain polite proud quaint quiet rapid rare rough rusty secret shallow sharp shiny shy silent \
     silly sleepy slender smooth spare steady stern sturdy subtle tame tender thick thirsty tidy \
     timid tiny ugly vague vast vivid warm weary wicked wild wise witty";
/// Nouns of keys.
const NOUNS: &str = "acorn anchor anvil apron armour arrow attic badge bakery balcony ballad banjo barrel basin \
     basket beacon bell bicycle blanket blossom bonnet bottle bracelet branch brick bridge broom \
     bucket buckle butcher butter button cabin cable candle canoe canvas canyon carpet carriage \
     castle cellar chapel cherry chimney circus clarinet cliff clock clover coach cobbler coin \
     collar comet compass copper cottage cradle crayon cricket crown cupboard curtain cushion \
     dagger dairy diamond dinner donkey drawer drum dungeon eagle elbow engine envelope fabric \
     falcon farmer feather fence ferry fiddle fountain fox furnace garden garlic gate ginger \
     glacier glove goblet goose grape gravel guitar hammer harbour harvest helmet hedge heron \
     honey hotel island ivory jacket jewel jungle kennel kettle kitchen kite ladder lagoon \
     lantern lawyer lemon letter lever library lighthouse lizard lobster locket loom lumber \
     magnet mantle maple marble market meadow medal melon miller mirror mitten monkey mosaic \
     motor mountain museum mustard napkin needle nephew nickel nutmeg oasis olive onion orchard \
     organ otter oven oyster paddle painter palace parrot pasture pebble pelican pencil pepper \
     piano pigeon pillow pirate planet plough pocket pony poppy porch poster potato prairie \
     prince pudding pulley pumpkin puppet puzzle pyramid quarry quilt rabbit radish raft railway \
     raven ribbon rifle river robin rocket rooster saddle sailor salmon sandal saucer scarf \
     shepherd shovel shutter skeleton sleigh spider spoon squirrel stable statue stove stream \
     sugar summit swallow tailor tavern teapot temple thimble thistle throne thunder ticket \
     timber tobacco tortoise tower trumpet tunnel turnip umbrella uncle valley velvet village \
     violin wagon walnut wardrobe weasel whistle widow willow window winter wizard workshop yacht \
     zebra";
/// Verbs, which lists of words have beside the others.
const VERBS: &str = "admire adopt advise agree allow annoy appear argue arrive attach attend avoid bake balance \
     beg behave bless boast borrow bounce breathe bury calculate carry chase cheer chew choose \
     claim climb collect compare complain confess connect copy cough crawl cross dance decide \
     decorate deliver deny depend describe deserve destroy divide earn embrace enjoy escape \
     examine excuse explain explore fasten fetch flood follow forgive frighten gather greet \
     grumble guess hesitate hurry imagine improve inform invent invite judge juggle knit launch \
     laugh listen manage measure melt mend mumble murmur obey observe offer owe paint perform \
     permit persuade plead polish pour praise predict prepare preserve pretend produce promise \
     protect punish realise receive recognise refuse regret rejoice remember remind repair \
     replace rescue reveal scatter scold scream scrub search shiver shrug snore sneeze squeeze \
     stammer stretch stumble suggest surprise suspect tease thank tremble trust unpack vanish \
     visit wander warn whisper wonder worry wrestle yawn";

/// One of the words of a list.
fn one(list: &'static str, draws: &mut Draws) -> &'static str {
    let count = list.split_whitespace().count();
    list.split_whitespace()
        .nth(draws.below(count))
        .expect("below the number of words")
}

/// `adjective-noun`.
pub fn key(draws: &mut Draws) -> String {
    format!("{}-{}", one(ADJECTIVES, draws), one(NOUNS, draws))
}

/// Seven digits.
pub fn number(draws: &mut Draws) -> String {
    (1_000_000 + draws.below(9_000_000)).to_string()
}

/// A random UUID (RFC 9562, version 4).
pub fn uuid(draws: &mut Draws) -> String {
    let (high, low) = (draws.next(), draws.next());
    let (high, low) = (high & !0xf000 | 0x4000, low & !(3 << 62) | 2 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// `count` letters from `first` on.
pub fn letters(draws: &mut Draws, first: u8, count: usize) -> String {
    (0..count)
        .map(|_| (first + draws.below(26) as u8) as char)
        .collect()
}

/// `count` different plain words in random order; beyond the number of known ones, pairs of them.
pub fn words(draws: &mut Draws, count: usize) -> Vec<String> {
    let mut all: Vec<String> = [NOUNS, ADJECTIVES, VERBS]
        .iter()
        .flat_map(|list| list.split_whitespace())
        .map(Into::into)
        .collect();
    draws.shuffle(&mut all);
    let missing = count.saturating_sub(all.len());
    all.truncate(count);
    all.extend(distinct(missing, || key(draws)));
    all
}

/// `count` different strings.
pub fn distinct(count: usize, mut draw: impl FnMut() -> String) -> Vec<String> {
    let mut known = std::collections::HashSet::new();
    let mut found = Vec::with_capacity(count);
    while found.len() < count {
        let next = draw();
        if known.insert(next.clone()) {
            found.push(next);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_different_and_there_are_as_many_as_asked() {
        for count in [0, 10, 400, 3000] {
            let mut found = words(&mut Draws::new(&[1]), count);
            assert_eq!(found.len(), count);
            found.sort();
            found.dedup();
            assert_eq!(found.len(), count, "some of {count} come twice");
        }
    }

    #[test]
    fn uuids_say_their_version() {
        let mut draws = Draws::new(&[2]);
        for _ in 0..50 {
            let uuid = uuid(&mut draws);
            let parts: Vec<&str> = uuid.split('-').collect();
            assert_eq!(
                parts.iter().map(|p| p.len()).collect::<Vec<_>>(),
                [8, 4, 4, 4, 12],
                "{uuid}"
            );
            assert!(
                parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]),
                "{uuid}"
            );
        }
    }
}
