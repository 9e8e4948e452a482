"""What the mini model should draw well, and the wordings under which it learns its pictures."""
import re

# Drawn more often than the other names; none of these is held out.
CORE = set("""red apple,green apple,banana,grapes,watermelon,strawberry,lemon,cherries,peach,pear,pineapple,tomato,carrot,
ear of corn,broccoli,mushroom,bread,cheese wedge,hamburger,french fries,pizza,hot dog,doughnut,cookie,birthday cake,
cupcake,ice cream,soft ice cream,lollipop,candy,egg,coconut,avocado,eggplant,beer mug,wine glass,teapot,hot beverage,
popcorn,fox,dog face,cat face,lion,tiger face,bear,panda,koala,rabbit face,mouse face,hamster,cow face,pig face,frog,
monkey face,chicken,penguin,bird,eagle,owl,duck,bat,wolf,horse face,unicorn,honeybee,bug,snail,lady beetle,butterfly,
spider,snake,turtle,whale,spouting whale,dolphin,fish,tropical fish,octopus,shark,crab,elephant,giraffe,flamingo,parrot,
tulip,rose,sunflower,cherry blossom,hibiscus,cactus,palm tree,deciduous tree,evergreen tree,christmas tree,
four leaf clover,maple leaf,rocket,automobile,taxi,bus,police car,fire engine,delivery truck,bicycle,airplane,
helicopter,sailboat,locomotive,tractor,house,castle,tent,balloon,umbrella,guitar,drum,trumpet,violin,key,light bulb,
candle,trophy,bell,gem stone,closed book,books,pencil,scissors,hammer,hourglass done,alarm clock,camera,television,
laptop,mobile phone,soccer ball,basketball,tennis,crown,top hat,t-shirt,dress,jeans,high-heeled shoe,backpack,wrapped gift,
teddy bear,anchor,magnet,envelope,locked,red heart,blue heart,green heart,yellow heart,star,sun,sun with face,
crescent moon,ringed planet,rainbow,cloud,umbrella with rain drops,snowman,snowflake,fire,droplet,volcano,mountain,
grinning face,smiling face with sunglasses,smiling face with heart-eyes,crying face,angry face,sleeping face,skull,ghost,
alien,robot,jack-o-lantern,pile of poo,red circle,blue circle,green square""".replace("\n", "").split(","))

HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 125, "blue": 212, "purple": 275, "pink": 330}  # degrees
COLOURS = set(HUES) | {"black", "white", "brown", "grey"}
# Common words that emojibase's short codes lack.
ALIASES = {"deciduous tree": ["tree"], "closed book": ["book"], "wrapped gift": ["present"], "fire engine": ["fire truck"],
           "locomotive": ["steam train"], "hot beverage": ["cup of coffee"], "locked": ["padlock"], "ear of corn": ["corn"]}
# Rarely asked for, or hardly drawable with 64 tokens: by emojibase's group (0 smileys, 8 symbols).
WEIGHT = {0: 0.6, 8: 0.5}


def article(words):
    return f"an {words}" if re.match(r"[aeiou]", words) else f"a {words}"


def phrases(row):
    """The wordings of one picture without its style; the first is the plain one."""
    if row["recoloured"]:
        names = [f"{row['colour']} {row['subject']}"]
    else:
        untrue = COLOURS - {row["colour"]}
        names = [row["name"]] + [w for w in row["aliases"] + ALIASES.get(row["name"], []) if not untrue & set(w.split())]
        if row["colour"] and row["style"] != "fluent high contrast":
            names.append(f"{row['colour']} {row['subject']}")
    adjective = row["group"] == 0 and "heart" not in row["name"]
    forms = ("{0}", "{0} emoji") if adjective else ("{0}", "{1}", "picture of {1}", "{0} emoji")
    return [form.format(n, article(n)) for n in dict.fromkeys(names) for form in forms]


def caption(phrase, style):
    return f"{phrase}, {style} style"
