import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Locale;
import java.util.Properties;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;

/** One topology of Kafka Streams, closed as soon as every record has gone through it. */
public final class Streams {
    private static final ObjectReader JSON = new ObjectMapper().reader();
    private static final long CACHE_BYTES = 64 << 20;
    private static final int POLL_MS = 5;

    private final String workload;
    private final String topic;
    private final long events;
    private final String output;
    private final LongAdder done = new LongAdder();
    private volatile long started;

    private Streams(String[] given) {
        workload = given[0];
        topic = given[2];
        events = Long.parseLong(given[3]);
        output = given[4];
    }

    public static void main(String[] given) throws Exception {
        Streams job = new Streams(given);
        StreamsBuilder builder = new StreamsBuilder();
        BufferedWriter rows = null;
        switch (job.workload) {
            case "filter":
                job.filter(builder);
                break;
            case "window":
                rows = Files.newBufferedWriter(Files.createDirectories(Path.of(job.output)).resolve("windows.jsonl"));
                job.window(builder, rows);
                break;
            default:
                throw new IllegalArgumentException(job.workload);
        }
        KafkaStreams streams = new KafkaStreams(builder.build(), settings(given[1], given[5], given[6], given[7]));
        streams.start();
        while (job.done.sum() < job.events) {
            Thread.sleep(POLL_MS);
        }
        // Closing flushes what is cached and commits.
        streams.close();
        if (rows != null) {
            rows.close();
        }
        double seconds = (System.nanoTime() - job.started) / 1e9;
        System.out.printf(
                Locale.ROOT, "%nRESULT {\"events\": %d, \"seconds\": %.4f, \"note\": \"\"}%n", job.events, seconds);
    }

    private static Properties settings(String bootstrap, String scratch, String group, String threads) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, Path.of(scratch, "state").toString());
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, CACHE_BYTES);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 5_000);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        settings.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
        settings.put(StreamsConfig.producerPrefix("linger.ms"), 50);
        return settings;
    }

    private void filter(StreamsBuilder builder) {
        KStream<byte[], byte[]> records = builder.stream(topic, Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()));
        records.filter((key, value) -> {
                    start();
                    JsonNode event = parse(value);
                    done.increment();
                    return event.get("event_type").asText().equals("purchase") && event.get("price").asDouble() > 90;
                })
                .to(output, Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
    }

    /** Re-keyed by page with the price alone, added up in windows of event time; each update is a row. */
    private void window(StreamsBuilder builder, BufferedWriter rows) {
        Serde<JsonNode> json = Serdes.serdeFrom(
                (name, value) -> {
                    throw new UnsupportedOperationException();
                },
                (name, bytes) -> parse(bytes));
        Consumed<byte[], JsonNode> consumed = Consumed.with(Serdes.ByteArray(), json)
                .withTimestampExtractor((ConsumerRecord<Object, Object> record, long before) ->
                        ((JsonNode) record.value()).get("ts").asLong());
        builder.stream(topic, consumed)
                .map((key, event) -> {
                    start();
                    return KeyValue.pair(event.get("page").asText(), event.get("price").asDouble());
                })
                .groupByKey(Grouped.with(Serdes.String(), Serdes.Double()))
                .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofMinutes(1), Duration.ofMinutes(30)))
                .aggregate(
                        () -> new double[] {0, 0},
                        (page, price, total) -> {
                            done.increment();
                            return new double[] {total[0] + 1, total[1] + price};
                        },
                        Materialized.with(Serdes.String(), pairs()))
                .toStream()
                .foreach((page, total) -> write(rows, page, total));
    }

    private static void write(BufferedWriter rows, Windowed<String> page, double[] total) {
        String row = String.format(
                Locale.ROOT,
                "{\"window_start\": %d, \"page\": \"%s\", \"count\": %d, \"sum\": %s}%n",
                page.window().start(), page.key(), (long) total[0], total[1]);
        synchronized (rows) {
            try {
                rows.write(row);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }
    }

    private static Serde<double[]> pairs() {
        return Serdes.serdeFrom(
                (name, pair) -> pair == null
                        ? null
                        : ByteBuffer.allocate(16).putDouble(pair[0]).putDouble(pair[1]).array(),
                (name, bytes) -> {
                    if (bytes == null) {
                        return null;
                    }
                    ByteBuffer buffer = ByteBuffer.wrap(bytes);
                    return new double[] {buffer.getDouble(), buffer.getDouble()};
                });
    }

    private static JsonNode parse(byte[] bytes) {
        try {
            return JSON.readTree(bytes);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    private void start() {
        if (started == 0) {
            started = System.nanoTime();
        }
    }
}
