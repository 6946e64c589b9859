"""Banks of wordings for the data sets of the field: how a name or a sentence is asked, and how nothing is found.

Owns words only. The first wording of each bank of questions, the very one that scores are made with, is drawn more than
the others. Placeholders: {x} the text as the data set has it, {the} the same as a phrase that a sentence can hold ("the
wall", "a man", "what is on the left"), {y} another such phrase, of what is there. Nothing agrees with them in number:
they may be plural.
"""

from __future__ import annotations

NAME_QUESTIONS: tuple[str, ...] = (
    "What is {x} in this image? Please output segmentation mask.",
    "{x}",
    "{x}.",
    "{x}, please.",
    "Segment {the}.",
    "In this image, segment {the}.",
    "Please segment this for me: {x}.",
    "Can you segment {the}?",
    "Could you draw a mask of {the}?",
    "In this picture, show me {the}.",
    "Show me where {the} can be seen.",
    "Find this and give me a mask: {x}.",
    "Where in this picture can I see {the}?",
    "Where should I look for {the}? Answer with a mask.",
    "I need a segmentation mask of {the}.",
    "I am looking for {the}. Please mark the pixels.",
    "Which pixels show {the}?",
    "Which part of the image shows {the}? Please give me the mask.",
    "Mark {the} in this image, please.",
    "From this picture, cut out {the}.",
    "Outline {the}, please.",
    "Give me the region of {the}.",
    "Make a mask that covers {the}.",
    "With a segmentation mask, please point out {the}.",
    "Draw the mask of {the}.",
    "Segmentation mask, please: {x}.",
    "Select everything that belongs to {the}.",
    "Would you highlight {the}?",
)
"""Ways to ask for what has a name."""

SENTENCE_REQUESTS: tuple[str, ...] = (
    "{x} Please output segmentation mask.",
    "{x}",
    "{x} Please answer with a segmentation mask.",
    "{x} Show me a mask.",
    "{x} Please segment it.",
    "{x} Mark it in the image.",
    "{x} Please draw the mask.",
    "{x} I would like to see the mask.",
    "{x} Output the mask, please.",
    "{x} Please show it in the picture.",
    "{x} Give me the segmentation.",
    "{x} Let me see it as a mask.",
    "{x} Can you segment it?",
    "{x} Could you mark the pixels?",
    "{x} Highlight it, please.",
    "{x} Please point it out with a mask.",
    "{x} Answer by segmenting it.",
    "{x} Where is it? Reply with a mask.",
    "{x} Look at the image and output a segmentation mask.",
    "{x} Please find it and cut it out.",
    "{x} Return the region as a mask.",
    "Please segment what this asks for: {x}",
    "Answer with a mask: {x}",
    "Look at the picture. {x} Please give me the segmentation mask.",
)
"""Ways to ask for a mask in answer to a sentence; {x} ends as sentences do."""

PLAIN_DENIALS: tuple[str, ...] = (
    "No, nothing in this image fits that.",
    "No, there is nothing like that here.",
    "No, I cannot find that in this image.",
    "I see nothing in the picture that fits.",
    "Sorry, I find nothing like that in this image.",
    "Sorry, nothing here matches what you describe.",
    "Nothing in this picture matches your description.",
    "Nothing of that kind can be seen here.",
    "I looked at the whole image and found nothing that fits.",
    "There is nothing here that I could segment for that.",
    "The image does not show what you ask for.",
    "This picture does not show anything like that.",
    "What you describe is not in this image.",
    "What you ask for cannot be seen here.",
    "I am afraid that nothing here fits your question.",
    "As far as I can see, there is no such thing in this image.",
    "I do not see anything that answers your question.",
    "I searched the picture without finding it.",
    "It seems that nothing in this image is meant by that.",
    "Unfortunately, I cannot see anything of the sort.",
    "No part of this image fits what you say.",
    "That is not to be found in this picture.",
)
"""Answers to a false premise that do not repeat it, so that they fit any sentence."""

PLAIN_CORRECTIONS: tuple[str, ...] = (
    "No, nothing in this image fits that, but I see {y}.",
    "No, that is not here, but the image shows {y}.",
    "Nothing here fits that. Did you mean {y}?",
    "I find nothing like that in this image, but I find {y}.",
    "Sorry, I cannot see that here, but I can see {y}.",
    "Sorry, nothing here matches what you describe. Perhaps you mean {y}?",
    "That is not in this picture. What I see is {y}.",
    "What you ask for is not here; the picture shows {y}.",
    "The image does not show that. It does show {y}.",
    "This picture shows nothing of the kind, but it shows {y}.",
    "I looked for it and only found {y}.",
    "I am afraid that is not here. You may be thinking of {y}.",
    "I do not see anything that answers your question. Do you perhaps mean {y}?",
    "Not quite: the image shows {y} instead.",
    "There is nothing here that fits, but I can point to {y}.",
    "Nothing matches your description, though I notice {y}.",
    "I cannot find that, but I did find {y}.",
    "No such thing can be seen. Were you asking about {y}?",
    "As far as I can see, that is not in the image, but I notice {y}.",
    "Your question does not fit this picture, in which I see {y}.",
    "You will not find that here, but you will find {y}.",
    "No. Instead of that, I see {y}.",
)
"""Answers to a false premise that do not repeat it and name what is there."""
